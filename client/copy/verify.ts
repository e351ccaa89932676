// The read-back: an image compared with its manifest, from the medium and not from the page cache where that is possible.

import { Failure } from '../../shared/failures.ts'
import { CHUNK_SIZE, chunkCount } from '../plan.ts'
import { allOrFirstError } from './copy.ts'
import { storeFailure, type OpenImage } from './image.ts'
import { mustPassCache } from './medium.ts'
import type { Pool } from './pool.ts'
import type { BadChunk } from './worker.ts'

/** Chunks per job: few messages, and still a progress bar that moves. */
const BATCH = 16
/** Twice the threads, so that none waits for its next job. */
const UNDER_WAY = 8

/**
 * Re-reads an image of `size` bytes. @returns every bad chunk, in order
 * @throws the signal's reason; Failure STANDBY_IO with the path
 */
export async function verify(
  image: OpenImage,
  size: number,
  pool: Pool,
  signal: AbortSignal,
  onProgress: (bytes: number) => void,
): Promise<BadChunk[]> {
  const chunks = chunkCount(size)
  const bad: BadChunk[] = []
  let next = 0
  let failed = false
  const { direct } = await mustPassCache(image.file, image.direct, pool.slots.at(-1), signal)

  const useSlot = async (slot: number): Promise<void> => {
    while (next < chunks && !failed) {
      signal.throwIfAborted()
      const chunk = next
      const count = Math.min(BATCH, chunks - chunk)
      next += count
      const { fd, manifest } = image
      const job = { kind: 'check', slot, chunk, count, size, fd, direct, manifest } as const
      const checked = await pool.run(job).catch((error: unknown) => {
        throw storeFailure(image.file, error)
      })
      bad.push(...checked.bad)
      onProgress(Math.min(count * CHUNK_SIZE, size - chunk * CHUNK_SIZE))
    }
  }

  await allOrFirstError(
    Array.from({ length: UNDER_WAY }, (_, slot) => useSlot(slot)),
    () => (failed = true),
  )
  return bad.sort((a, b) => a.chunk - b.chunk)
}

/** A bad chunk as people look for it: number and byte offset. */
export function offsetOf({ chunk }: BadChunk): string {
  return `chunk ${chunk} (byte ${chunk * CHUNK_SIZE})`
}
