// One line on what serve is doing, for the service manager's status.

import { hasStep, isOpen, readJournal } from '../session/journal.ts'
import type { Source } from '../source.ts'
import type { Domains } from './domains.ts'

/** What a line can say of one domain; a quiet one is only counted. */
export type Activity = 'idle' | 'freezing' | 'frozen' | 'merging' | 'unsettled' | 'needs operator'

/** No begin takes longer: its snapshot alone may take a minute. */
const BEGIN_MS = 120_000

/** e.g. `3 domains; frozen: web; needs operator: db`. */
export function summarise(activities: ReadonlyMap<string, Activity>): string {
  const count = `${activities.size} domain${activities.size === 1 ? '' : 's'}`
  const busy = (['freezing', 'frozen', 'merging', 'unsettled', 'needs operator'] as const).flatMap(
    kind => {
      const names = [...activities].filter(([, one]) => one === kind).map(([name]) => name)
      return names.length > 0 ? [`${kind}: ${names.join(', ')}`] : []
    },
  )
  return [count, ...(busy.length > 0 ? busy : ['no session'])].join('; ')
}

/** Sessions from memory, what was left over from the journals. */
export async function readActivities(
  source: Source,
  domains: Domains,
): Promise<Map<string, Activity>> {
  const each = domains.all().map(async (one): Promise<[string, Activity]> => {
    const { domain } = one
    const session = one.current()
    if (session) return [domain, session.state === 'frozen' ? 'frozen' : 'merging']
    try {
      const journal = await readJournal(source.paths.journals, domain)
      if (!journal || !isOpen(journal)) return [domain, 'idle']
      const last = journal.entries.at(-1)?.step
      if (last === 'needs operator') return [domain, last]
      // A begin that is under way has its journal, and is a session only when it is done.
      const age = Date.now() - Date.parse(journal.intent.at)
      return [domain, age < BEGIN_MS && !hasStep(journal, 'frozen') ? 'freezing' : 'unsettled']
    } catch {
      return [domain, 'needs operator']
    }
  })
  return new Map(await Promise.all(each))
}
