// Recovery of what an earlier run left: read its journal, end readers that outlived it, settle.

import { setTimeout as delay } from 'node:timers/promises'
import { Failure } from '../../shared/failures.ts'
import { openersOf, type Opener } from '../../shared/host/openers.ts'
import { HASHER } from '../digest/words.ts'
import type { Source } from '../source.ts'
import { mergeForeignOverlays } from './adopt.ts'
import { isOpen, mendJournal, readJournal, type Journal } from './journal.ts'
import { settle } from './settle.ts'

const READERS_PATIENCE_MS = 10_000

/** Settles the domain's journal if it is open. @returns whether it was. @throws Failure MERGE_FAILED, NEEDS_OPERATOR */
export async function recoverJournal(source: Source, domain: string): Promise<boolean> {
  const { journals } = source.paths
  const journal = await readJournal(journals, domain)
  if (!journal || !isOpen(journal)) return false
  source.log.debug(
    { domain, session: journal.intent.session },
    'recovering what an earlier run left',
  )
  await mendJournal(journals, domain)
  await endStrayReaders(source, journal)
  await settle(source, journal)
  return true
}

/**
 * Settles what was left of a domain: its journal if it is open, else, on an operator's word, overlays that are not ours.
 * @returns whether there was anything. @throws Failure as recoverJournal and mergeForeignOverlays
 */
export async function recoverDomain(
  source: Source,
  domain: string,
  mergeOverlays: readonly string[],
): Promise<boolean> {
  if (await recoverJournal(source, domain)) return true
  return mergeOverlays.length > 0 && mergeForeignOverlays(source, domain, mergeOverlays)
}

/**
 * The classic daemon's children outlive a killed serve, and would hand out the bytes of a base that the merge is changing: they
 * must be gone before it. Our own die with serve, which may take a moment.
 */
async function endStrayReaders(source: Source, journal: Journal): Promise<void> {
  const end = Date.now() + READERS_PATIENCE_MS
  for (const { base } of journal.intent.disks)
    for (;;) {
      const readers = (await openersOf(base)).filter(isReader)
      if (readers.length === 0) break
      for (const { pid, command } of readers) {
        source.log.warn({ pid, base }, `ending the ${command} that outlived its session`)
        killIfThere(pid)
      }
      if (Date.now() > end)
        throw new Failure(
          'MERGE_FAILED',
          `${readers[0]?.command ?? ''} (pid ${readers[0]?.pid ?? 0}) does not let go of ${base}`,
        )
      await delay(50)
    }
}

/** A process that reads a frozen base for a session: it must not see what comes after. */
export function isReader({ command }: Opener): boolean {
  return command === 'nbd-server' || command === HASHER
}

/** SIGKILL to a process that may have gone already. */
export function killIfThere(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
  }
}
