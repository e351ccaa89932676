// What earlier sessions left: open journals, overlays without one, nbd-servers that outlived serve.

import { readdir } from 'node:fs/promises'
import path from 'node:path'
import { toFailure } from '../../shared/failures.ts'
import { openersOf } from '../../shared/host/openers.ts'
import { hasStep, isOpen, journaledDomains, readJournal, type Journal } from '../session/journal.ts'
import { fail, pass, warn, type Check, type Outcome } from './finding.ts'
import type { ServeFacts } from './serve.ts'

const OVERLAY_NAME = /^(.+)\.([^.]+)\.(\d{8}T\d{6}Z-[0-9a-f]{4})\.nbd-clone\.qcow2$/

/** Domain, target and recovery point in the name of one of our overlays. */
export function overlayPartsOf(
  file: string,
): { domain: string; target: string; recoveryPoint: string } | undefined {
  const [, domain, target, recoveryPoint] = OVERLAY_NAME.exec(path.basename(file)) ?? []
  if (domain === undefined || target === undefined || recoveryPoint === undefined) return undefined
  return { domain, target, recoveryPoint }
}

export interface JournalFile {
  readonly domain: string
  readonly journal?: Journal
  /** Why it cannot be read. */
  readonly broken?: Outcome
}

export interface LeftoverFacts {
  readonly journals: readonly JournalFile[]
  /** Files in all overlay directories that have the name of an overlay. */
  readonly overlays: readonly string[]
  readonly serve: ServeFacts
}

export async function readJournals(directory: string): Promise<JournalFile[]> {
  const domains = await journaledDomains(directory)
  return Promise.all(
    domains.map(async domain => {
      try {
        const journal = await readJournal(directory, domain)
        return journal ? { domain, journal } : { domain }
      } catch (error) {
        const { message, hint, code } = toFailure(error)
        return { domain, broken: fail(message, hint, code) }
      }
    }),
  )
}

export async function readOverlays(directories: readonly string[]): Promise<string[]> {
  const each = [...new Set(directories)].map(async directory => {
    const names = await readdir(directory).catch(() => [])
    return names.filter(name => overlayPartsOf(name)).map(name => path.join(directory, name))
  })
  return (await Promise.all(each)).flat().sort()
}

/** An open journal is in order while its session is on, and a task for `recover` else. */
export function judgeJournals({ journals, serve }: LeftoverFacts): Outcome[] {
  const outcomes = journals.flatMap(({ domain, journal, broken }): Outcome[] => {
    if (broken) return [broken]
    if (!journal || !isOpen(journal)) return []
    const last = journal.entries.findLast(one => one.step === 'needs operator')
    const overlays = journal.intent.disks.map(disk => disk.overlay).join(', ')
    if (journal.entries.at(-1)?.step === 'needs operator')
      return [
        fail(
          `${domain} needs an operator: ${last?.reason ?? 'no reason given'} (overlays: ${overlays})`,
          `clone-server recover ${domain}, and follow what it prints; delete no overlay`,
          'NEEDS_OPERATOR',
        ),
      ]
    if (serve.kind !== 'running')
      return [
        fail(
          `${domain} may be on its overlays, and serve does not run: ${overlays}`,
          'systemctl start clone-server: it merges at its start',
          'NEEDS_OPERATOR',
        ),
      ]
    const state = serve.domains.find(one => one.domain === domain)?.state
    return state === 'frozen' || state === 'merging'
      ? [pass(`${domain} is in a session (${state})`)]
      : [
          warn(
            `${domain} is not settled yet; serve tries again by itself`,
            `clone-server recover ${domain}`,
          ),
        ]
  })
  return outcomes.length > 0 ? outcomes : [pass('no journal is open')]
}

/** Overlays that no open journal names. */
export function judgeOverlays({ journals, overlays }: LeftoverFacts): Outcome[] {
  const known = journals.flatMap(({ journal }) => (journal ? [journal] : []))
  const open = known.filter(isOpen).flatMap(one => one.intent.disks.map(disk => disk.overlay))
  const outcomes = overlays
    .filter(file => !open.includes(file))
    .map(file => {
      const closed = known.find(one => one.intent.disks.some(disk => disk.overlay === file))
      const target = closed?.intent.disks.find(disk => disk.overlay === file)?.target
      if (closed && hasStep(closed, 'clean', target))
        return warn(
          `${file} was merged and holds nothing any more`,
          `if no process has it open (fuser ${file}) and virsh domblklist does not name it: rm ${file}`,
        )
      return fail(
        `${file} is an overlay of ours that no journal names: it may hold what a guest wrote`,
        `do not delete it; who uses it: virsh domblklist ${overlayPartsOf(file)?.domain ?? 'DOMAIN'}, fuser ${file}; what it lies on: qemu-img info -U ${file}`,
        'NEEDS_OPERATOR',
      )
    })
  return outcomes.length > 0 ? outcomes : [pass('no overlay of ours without an open journal')]
}

/** The children of a killed serve go on serving. */
async function lookAtReaders({ journals, serve }: LeftoverFacts): Promise<Outcome> {
  if (serve.kind === 'running') return pass('serve runs and looks after its nbd-servers')
  const bases = journals.flatMap(({ journal }) =>
    journal && isOpen(journal) ? journal.intent.disks.map(disk => disk.base) : [],
  )
  const openers = (await Promise.all(bases.map(openersOf))).flat()
  const pids = [...new Set(openers.filter(one => one.command === 'nbd-server').map(one => one.pid))]
  if (pids.length === 0) return pass('no nbd-server of an earlier serve')
  return warn(
    `nbd-servers of an earlier serve still read a base: pid ${pids.join(', ')}`,
    'the next serve ends them before it merges: systemctl start clone-server',
  )
}

export const LEFTOVER_CHECKS: readonly Check<LeftoverFacts>[] = [
  { check: 'journals', look: judgeJournals },
  { check: 'overlays', look: judgeOverlays },
  { check: 'nbd-servers', look: lookAtReaders },
]
