// What cannot be decided is not touched: it is said, once in the journal, with what an operator can type.

import { Failure } from '../../shared/failures.ts'
import type { Source } from '../source.ts'
import { lastStep, recordStep, type Journal, type SessionDiskRecord } from './journal.ts'

/** Leaves everything as it is, says so in the journal, and what to type. @throws Failure NEEDS_OPERATOR, always */
export async function needsOperator(
  source: Source,
  journal: Journal,
  reason: string,
  commands: readonly string[],
): Promise<never> {
  const remedy = commands.join('\n        ')
  // recover looks again and again; journal and log say it once.
  const last = lastStep(journal, 'needs operator')
  if (last?.reason !== reason || journal.entries.at(-1) !== last) {
    await recordStep(journal, 'needs operator', { reason, remedy })
    const { domain, session } = journal.intent
    source.log.error({ domain, session, reason, remedy }, 'needs operator')
  }
  throw new Failure('NEEDS_OPERATOR', reason, { remedy })
}

/** What can be typed when base and overlay both went on: the overlay belongs on the base as it was when it was frozen. */
export function twoHistories(journal: Journal, disk: SessionDiskRecord): string[] {
  const { domain, recoveryPoint } = journal.intent
  const { base, overlay, format } = disk
  return [
    `to keep what ${base} holds: mv ${overlay} somewhere else; clone-server recover ${domain}`,
    `the overlay can then be read on a copy of the base as of ${recoveryPoint} (that generation on a standby):`,
    `qemu-img rebase -u -f qcow2 -b COPY -F ${format} OVERLAY`,
  ]
}
