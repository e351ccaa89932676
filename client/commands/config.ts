// clone config check, show, schema: what standby.yaml says, and which layer said it.

import type { Effective } from '../../shared/config.ts'
import { formatDuration } from '../../shared/quantities.ts'
import { formatTimetable, UNLIMITED } from '../../shared/timetable.ts'
import { cloneConfig, explain } from '../config/effective.ts'
import type { StandbyConfig } from '../config/schema.ts'
import { resolveOwnership } from '../store/ownership.ts'

export interface Shown {
  readonly clone: string
  readonly values: { readonly key: string; readonly value: string; readonly origin: string }[]
}

/** Loading did the checks that need one layer; this resolves every domain, and its owners on this host. @returns their names. @throws Failure USAGE */
export async function configCheck(config: StandbyConfig): Promise<string[]> {
  const names = Object.keys(config.domains)
  for (const name of names) await resolveOwnership(cloneConfig(config, name).ownership, name)
  return names
}

/** @throws Failure USAGE for a domain that is not configured */
export function configShow(config: StandbyConfig, domain: string | undefined): Shown[] {
  const names = domain === undefined ? Object.keys(config.domains) : [domain]
  return names.map(clone => {
    const { values, origins } = explain(config, clone)
    const own = Object.entries(origins).map(([key, origin]) => ({
      key,
      value: valueAt(values, key),
      origin,
    }))
    const { name } = cloneConfig(config, clone).source
    const used = Object.entries(config.sources[name] ?? {}).map(([key, value]) => ({
      key: `source.${key}`,
      value: typeof value === 'string' ? value : JSON.stringify(value),
      origin: `sources.${name}`,
    }))
    const rate = {
      key: 'limitRate',
      value: formatTimetable(config.limitRate ?? UNLIMITED),
      origin: config.limitRate ? 'the top level' : 'built-in',
    }
    return { clone, values: [...own, ...used, rate].sort((a, b) => a.key.localeCompare(b.key)) }
  })
}

const DURATIONS = new Set(['rpo', 'stall', 'reverify', 'fullCompareEvery'])

function valueAt(values: Effective['values'], dotted: string): string {
  let value: unknown = values
  for (const key of dotted.split('.')) value = (value as Record<string, unknown>)[key]
  if (DURATIONS.has(dotted) && typeof value === 'number') return formatDuration(value)
  return typeof value === 'string' ? value : JSON.stringify(value)
}
