// The read-back of what a pull has written: from the medium and not from the page cache where that is possible.

import { Failure } from '../../shared/failures.ts'
import type { CopyDisk } from './copy.ts'
import type { Pool } from './pool.ts'
import { CHUNKS_AT_ONCE, offsetOf, verify } from './verify.ts'

/** Verifies the chunks just written. @throws Failure INTEGRITY naming the first bad chunk */
export async function readBack(
  { image, plan, written }: Pick<CopyDisk, 'image' | 'plan' | 'written'>,
  pool: Pool,
  signal: AbortSignal,
  onProgress: (bytes: number) => void,
): Promise<void> {
  const runs = written.runs(CHUNKS_AT_ONCE)
  const bad = await verify(image, plan.size, pool, signal, onProgress, runs)
  if (bad[0])
    throw new Failure(
      'INTEGRITY',
      `${image.file}: ${bad.length} chunks read back differ from what was received, the first at ${offsetOf(bad[0])}`,
      { remedy: "suspect this host's medium or memory; see dmesg and smartctl, then pull again" },
    )
}
