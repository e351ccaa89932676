// Several connections to one disk that are read as one: a single stream carries no more than its window in each round trip.

import { toFailure } from '../../shared/failures.ts'
import { isPassing } from './back-off.ts'
import type { DiskConnection } from './lasting.ts'

/** What one stream can carry in a round trip fills a gigabit line up to so many milliseconds: ssh2's window is 1 to 2 MiB, TCP's more. */
const MS_PER_STREAM = 8
/** More add nothing: the copy has 32 chunks under way in all. */
const MOST = 8
/** All disks together; on the source each stream is two processes. */
const MOST_IN_ALL = 16
/** A stream that has fewer reads than this under way is not the bottleneck. */
const BUSY = 2
/** So long after one that could not be had no further stream is asked for. */
const PAUSE_MS = 10_000

/** How many streams each disk is worth. @param roundTripMs 0 when it limits nothing. @param disks read at the same time */
export function streamsPerDisk(roundTripMs: number, disks: number): number {
  const wanted = Math.min(MOST, Math.ceil(roundTripMs / MS_PER_STREAM))
  return Math.max(1, Math.min(wanted, Math.floor(MOST_IN_ALL / Math.max(1, disks))))
}

/**
 * Reads a disk over `first`, and over more streams once all that are there are busy, up to `most`. A read goes to the stream
 * with the fewest under way. One that cannot be had is done without, unless for the sake of safety, which ends all of it.
 * @param open another stream to the same bytes; each outlives the loss of its own transport
 */
export function manyStreams(
  first: DiskConnection,
  most: number,
  open: (signal: AbortSignal) => Promise<DiskConnection>,
): DiskConnection {
  const streams = [{ disk: first, reads: 0 }]
  const enough = new AbortController()
  let limit = most
  let coming: Promise<void> | undefined
  let notBefore = 0

  function destroy(reason?: Error): void {
    enough.abort(reason)
    for (const { disk } of streams) disk.destroy(reason)
  }

  async function openOne(): Promise<void> {
    try {
      const disk = await open(enough.signal)
      if (enough.signal.aborted) disk.destroy()
      else streams.push({ disk, reads: 0 })
    } catch (error) {
      const failure = toFailure(error)
      if (enough.signal.aborted) return
      if (failure.code === 'UNSAFE') destroy(failure)
      else if (isPassing(error)) notBefore = performance.now() + PAUSE_MS
      else limit = streams.length
    }
  }

  return {
    size: first.size,
    async read(offset, into) {
      const stream = streams.reduce((a, b) => (b.reads < a.reads ? b : a))
      if (
        stream.reads >= BUSY &&
        streams.length < limit &&
        !enough.signal.aborted &&
        performance.now() >= notBefore
      )
        coming ??= openOne().finally(() => (coming = undefined))
      stream.reads++
      try {
        await stream.disk.read(offset, into)
      } finally {
        stream.reads--
      }
    },
    async disconnect(timeoutMs) {
      enough.abort()
      await coming
      await Promise.all(streams.map(({ disk }) => disk.disconnect(timeoutMs)))
    },
    destroy,
  }
}
