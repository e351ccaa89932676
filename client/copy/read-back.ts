// The read-back of what a pull has written: from the medium and not from the page cache where that is possible.

import type { CopyDisk } from './copy.ts'
import { mustPassCache } from './medium.ts'
import { BATCH, badFailure, workOff, type Through } from './runs.ts'

/** Verifies the chunks just written, which are synced. @throws Failure INTEGRITY or STANDBY_IO naming the first bad chunk */
export async function readBack(
  { image, plan, written }: Pick<CopyDisk, 'image' | 'plan' | 'written'>,
  through: Through,
): Promise<void> {
  const { file, fd, manifest } = image
  const { pool, signal } = through
  const { direct } = await mustPassCache(file, image.direct, pool.slots.at(-1), signal)
  const job = { kind: 'check', size: plan.size, fd, direct, manifest } as const
  const bad = await workOff(written.runs(BATCH), () => job, file, through)
  if (bad[0])
    throw badFailure(file, bad, 'what was received', {
      remedy: "suspect this host's medium or memory; see dmesg and smartctl, then pull again",
    })
}
