// Runs of chunks through the worker threads: compared where they lie, or copied to the same places of another file.

import { Failure } from '../../shared/failures.ts'
import type { Run } from '../store/record.ts'
import { CHUNK_SIZE } from '../plan.ts'
import { allOrFirstError } from './copy.ts'
import { storeFailure } from './image.ts'
import type { Pool } from './pool.ts'
import type { BadChunk, CheckJob, MoveJob } from './worker.ts'

/** Chunks per job: few messages, and still a progress bar that moves. */
export const BATCH = 16
/** Twice the threads, so that none waits for its next job. */
const UNDER_WAY = 8

/** A job but for what changes from run to run. */
export type RunJob = Omit<CheckJob, 'slot' | 'chunk' | 'count'> | MoveRunJob
type MoveRunJob = Omit<MoveJob, 'slot' | 'chunk' | 'count'>

export interface Through {
  readonly pool: Pool
  /** Ends the work early; nothing is under way any more when that is thrown. */
  readonly signal: AbortSignal
  readonly onProgress?: ((bytes: number) => void) | undefined
}

/**
 * Works off runs of at most BATCH chunks. @param jobOf the job of each run. @param file names errors
 * @returns every bad chunk, in order. @throws the signal's reason; Failure SPACE or STANDBY_IO with the path
 */
export async function workOff<R extends Run>(
  runs: Iterable<R>,
  jobOf: (run: R) => RunJob,
  file: string,
  { pool, signal, onProgress }: Through,
): Promise<BadChunk[]> {
  const bad: BadChunk[] = []
  const waiting = runs[Symbol.iterator]()
  let failed = false

  const useSlot = async (slot: number): Promise<void> => {
    for (let next = waiting.next(); !next.done && !failed; next = waiting.next()) {
      signal.throwIfAborted()
      const { chunk, count } = next.value
      const job = jobOf(next.value)
      const outcome = await pool.run({ ...job, slot, chunk, count }).catch((error: unknown) => {
        throw storeFailure(file, error)
      })
      bad.push(...outcome.bad)
      onProgress?.(Math.min(count * CHUNK_SIZE, job.size - chunk * CHUNK_SIZE))
    }
  }

  await allOrFirstError(
    Array.from({ length: UNDER_WAY }, (_, slot) => useSlot(slot)),
    () => (failed = true),
  )
  return bad.sort((a, b) => a.chunk - b.chunk)
}

/** All chunks from the first on, as runs. @param chunks how many */
export function* allRuns(chunks: number): Generator<Run> {
  for (let chunk = 0; chunk < chunks; chunk += BATCH)
    yield { chunk, count: Math.min(BATCH, chunks - chunk) }
}

/** A bad chunk as people look for it: number and byte offset. */
export function offsetOf({ chunk }: BadChunk): string {
  return `chunk ${chunk} (byte ${chunk * CHUNK_SIZE})`
}

/**
 * Chunks that were read again and are not what they must be: STANDBY_IO when the medium does not give the first of them,
 * else INTEGRITY. @param bad at least one, in order. @param other what they are not
 */
export function badFailure(
  file: string,
  bad: readonly BadChunk[],
  other: string,
  options: { remedy: string },
): Failure {
  const [first] = bad
  if (!first) throw new Failure('INTERNAL', `${file}: no bad chunk`)
  const where = `${bad.length} chunks, the first at ${offsetOf(first)}`
  return first.why === 'unreadable'
    ? new Failure('STANDBY_IO', `${file}: cannot be read back: ${where}`, options)
    : new Failure('INTEGRITY', `${file}: differs from ${other} when read back: ${where}`, options)
}
