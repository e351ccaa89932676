// The source's own digests of a frozen disk, in batches over the gate. Who reads them in order gets them ahead of time.

import { chunkCount } from '../../shared/chunks.ts'
import { Failure } from '../../shared/failures.ts'
import { MAX_DIGESTS } from '../../shared/gate.ts'
import type { Gate } from './gate.ts'

/** Digests of `count` chunks from `chunk` on: SHA-256 in hex, the disk's last chunk at its real length. */
export type SourceDigests = (chunk: number, count: number) => Promise<string[]>

/** Chunks that are asked for at once in advance: a second or so of hashing, 17 KB of answer. */
const BATCH = 256
/** The source hashes one batch while the other's answer is under way. */
const IN_FLIGHT = 2
/**
 * The last resort only: a gate that is gone is noticed by its lease, and a source that hashes nothing ends the session.
 * One that is busy with all disks of a domain may take minutes.
 */
const ANSWER_MS = 15 * 60_000

interface Batch {
  readonly first: number
  /** The chunk after its last one. */
  readonly end: number
  readonly digests: Promise<string[]>
}

/**
 * Reads the source's digests of one disk while its session is frozen. Calls may overlap. Two calls in a row, the second
 * of which begins where the first ended, make it ask ahead; no more than a few batches are ever held.
 * @param size bytes of the disk, as the session froze it. @param whole read also what the source takes for a hole
 * @returns a function that rejects with the source's own Failure, TRANSFER for an answer that is not what was asked for,
 * or the signal's reason
 */
export function sourceDigests(
  gate: Pick<Gate, 'call'>,
  token: string,
  target: string,
  size: number,
  signal: AbortSignal,
  whole = false,
): SourceDigests {
  const chunks = chunkCount(size)
  const inTurn = limit(IN_FLIGHT)
  /** Asked for and perhaps there: each begins where the one before ends. */
  let ahead: Batch[] = []
  /** Where the last call ended. */
  let end = -1

  const ask = (chunk: number, count: number): Promise<string[]> =>
    inTurn(async () => {
      const options = { signal, timeoutMs: ANSWER_MS }
      const { digests } = await gate.call(
        'digests',
        { token, target, chunk, count, whole },
        options,
      )
      if (digests.length === count) return digests
      throw new Failure(
        'TRANSFER',
        `the source gave ${digests.length} digests of disk ${target} for ${count} chunks`,
        { remedy: 'run the same version of nbd-clone on both hosts' },
      )
    })

  function askAhead(first: number): void {
    const count = Math.min(BATCH, chunks - first)
    const batch = { first, end: first + count, digests: ask(first, count) }
    ahead.push(batch)
    // What failed is told to whoever waits for it; the next call asks again.
    batch.digests.catch(() => {
      if (ahead.includes(batch)) ahead = ahead.slice(0, ahead.indexOf(batch))
    })
  }

  /** What the batches hold that the chunks lie in; the one after is asked for, those before are forgotten. */
  async function inOrder(chunk: number, until: number): Promise<string[]> {
    const [oldest] = ahead
    ahead = oldest && oldest.first <= chunk ? ahead.filter(batch => batch.end > chunk) : []
    let next = ahead.at(-1)?.end ?? chunk
    for (; next < until; next = ahead.at(-1)?.end ?? until) askAhead(next)
    const needed = ahead.filter(batch => batch.first < until)
    if (needed.length === ahead.length && next < chunks) askAhead(next)
    const from = chunk - (needed[0]?.first ?? chunk)
    const digests = (await Promise.all(needed.map(batch => batch.digests))).flat()
    return digests.slice(from, from + until - chunk)
  }

  return async (chunk, count) => {
    if (count < 1 || count > MAX_DIGESTS || chunk < 0 || chunk + count > chunks)
      throw new RangeError(`digests of ${count} chunks from ${chunk} of ${chunks}`)
    const follows = chunk === end
    end = chunk + count
    return follows ? inOrder(chunk, end) : ask(chunk, count)
  }
}

/** Runs at most so many at once, in the order in which they came. */
function limit(most: number): <T>(work: () => Promise<T>) => Promise<T> {
  const waiting: (() => void)[] = []
  let running = 0
  return async work => {
    if (running < most) running++
    else await new Promise<void>(resolve => waiting.push(resolve))
    try {
      return await work()
    } finally {
      const next = waiting.shift()
      if (next) next()
      else running--
    }
  }
}
