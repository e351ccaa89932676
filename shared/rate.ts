// A limit in bytes per second, shared by whoever takes from it: a token bucket of a quarter of a second, first come, first
// served. The limit is asked anew each time, so that a timetable can change it under a waiting taker.

import { setTimeout as sleep } from 'node:timers/promises'

/** Bytes per second; undefined: no limit. */
export type Limit = () => number | undefined

export interface Rate {
  /** Resolves when so many bytes may go. @throws the signal's reason; what was waited for is given back then */
  take(bytes: number, signal: AbortSignal): Promise<void>
}

/** What may go at once after a pause, in seconds of the limit. */
const BURST_S = 0.25
/** A change of the limit is noticed by who waits within this many milliseconds. */
const LOOK_AGAIN_MS = 1000

/** The bucket as numbers: `owed` bytes have gone beyond what the limit allowed by `at` (milliseconds). */
export interface Bucket {
  readonly owed: number
  readonly at: number
}

/** What is owed at a later moment; a pause earns a burst and no more. Pure. */
export function paid({ owed, at }: Bucket, now: number, perSecond: number): Bucket {
  const earned = (Math.max(0, now - at) / 1000) * perSecond
  return { owed: Math.max(-BURST_S * perSecond, owed - earned), at: now }
}

/** Milliseconds until nothing is owed any more. Pure. */
export const waitOf = ({ owed }: Bucket, perSecond: number): number =>
  Math.max(0, (owed / perSecond) * 1000)

/** @param now milliseconds of a clock that never goes back */
export function createRate(limit: Limit, now: () => number = () => performance.now()): Rate {
  let bucket: Bucket = { owed: 0, at: now() }
  let turn: Promise<unknown> = Promise.resolve()

  async function pay(bytes: number, signal: AbortSignal): Promise<void> {
    for (;;) {
      signal.throwIfAborted()
      const perSecond = limit()
      if (perSecond === undefined) {
        bucket = { owed: 0, at: now() }
        return
      }
      bucket = paid(bucket, now(), perSecond)
      const wait = waitOf(bucket, perSecond)
      if (wait === 0) {
        // More than the burst may go at once: the next one waits the longer.
        bucket = { ...bucket, owed: bucket.owed + bytes }
        return
      }
      await sleep(Math.min(Math.ceil(wait), LOOK_AGAIN_MS), undefined, { signal }).catch(
        () => undefined,
      )
    }
  }

  return {
    take(bytes, signal) {
      const mine = turn.then(() => pay(bytes, signal))
      turn = mine.catch(() => undefined)
      return mine
    },
  }
}
