// An overlay merged into its base while no QEMU has it open: qemu-img commit, which takes QEMU's own locks, so that a start
// meanwhile fails instead of meeting a half-merged disk.

import { fsyncPath } from '../../shared/host/durable.ts'
import { openersOf } from '../../shared/host/openers.ts'
import { reasonOf, run } from '../../shared/host/run.ts'
import { Failure } from '../../shared/failures.ts'
import type { Source } from '../source.ts'
import type { Journal, SessionDiskRecord } from './journal.ts'
import { inspectOverlay } from './overlay.ts'
import { needsOperator } from './stuck.ts'

/** A commit of terabytes takes hours; it is never cut short by a clock. */
const NO_DEADLINE = 0

/**
 * Commits; safe to repeat from wherever an earlier one ended. The overlay keeps its contents.
 * @param record writes `merge` before, and `pivot` after, when base and overlay say the same
 * @throws Failure NEEDS_OPERATOR when the overlay is not one of ours on this base, MERGE_FAILED
 */
export async function commitOffline(
  source: Source,
  journal: Journal,
  disk: SessionDiskRecord,
  record: (step: 'merge' | 'pivot') => Promise<void>,
): Promise<void> {
  const { domain } = journal.intent
  const { target, base, overlay } = disk
  const file = await inspectOverlay(disk)
  if (file.kind === 'blank') return
  if (file.kind !== 'ours')
    return needsOperator(
      source,
      journal,
      `disk ${target} of ${domain}: its overlay ${overlay} ${file.kind === 'missing' ? 'is gone' : `cannot be merged: ${file.why}`}`,
      [`qemu-img info ${overlay}`, `what ${base} holds is of ${journal.intent.instant}`],
    )
  for (const image of [base, overlay]) {
    const [opener] = await openersOf(image)
    if (opener)
      throw new Failure(
        'MERGE_FAILED',
        `disk ${target} of ${domain}: ${opener.command} (pid ${opener.pid}) has ${image} open`,
      )
  }
  await record('merge')
  source.log.info({ domain, target, bytes: file.bytes }, 'merging without QEMU')
  const commit = ['commit', '-q', '-d', '-f', 'qcow2', overlay]
  const result = await run('qemu-img', commit, { timeoutMs: NO_DEADLINE, diesWithUs: true })
  if (result.exitCode !== 0)
    throw new Failure(
      'MERGE_FAILED',
      `disk ${target} of ${domain}: qemu-img commit ${overlay}: ${reasonOf(result)}`,
    )
  await fsyncPath(base)
  await record('pivot')
}
