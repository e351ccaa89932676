// Where a frozen base has data; all else are holes, which read as zeros.

import { z } from 'zod'
import { Failure } from '../../shared/failures.ts'
import { grainSet, type GrainSet } from '../../shared/grain-set.ts'
import { reasonOf, run } from '../../shared/host/run.ts'

const map = z.array(z.object({ start: z.number(), length: z.number(), zero: z.boolean() }))

/** A list that is longer is not worth having: whoever asks reads everything. */
const PATIENCE_MS = 30_000

/**
 * The data of an image as a file (`qemu-img map`, which asks lseek(2) SEEK_DATA and SEEK_HOLE), a running domain's too.
 * @param size bytes, as they are exported. @throws Failure SOURCE_REFUSED when it cannot be known
 */
export async function readAllocation(base: string, size: number): Promise<GrainSet> {
  const argv = ['map', '-U', '-f', 'raw', '--output=json', base]
  const result = await run('qemu-img', argv, { timeoutMs: PATIENCE_MS, diesWithUs: true })
  if (result.exitCode !== 0)
    throw new Failure('SOURCE_REFUSED', `qemu-img map ${base}: ${reasonOf(result)}`)
  const data = grainSet(size)
  let end = 0
  for (const { start, length, zero } of map.parse(JSON.parse(result.stdout))) {
    if (start !== end) throw new Failure('SOURCE_REFUSED', `qemu-img map ${base}: a gap at ${end}`)
    end = start + length
    // QEMU sees whole sectors, where a file may end in the middle of one.
    if (!zero && start < size) data.mark(start, Math.min(length, size - start))
  }
  if (end < size) throw new Failure('SOURCE_REFUSED', `qemu-img map ${base}: it ends at ${end}`)
  return data
}
