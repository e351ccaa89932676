// One thing at a time per domain, and waiting for one's turn no longer than allowed.

import { setTimeout as delay } from 'node:timers/promises'
import type { Failure } from '../../shared/failures.ts'

export type Exclusive = <T>(task: () => Promise<T>) => Promise<T>

/** A queue: each task starts when the one before has ended, well or badly. */
export function createQueue(): Exclusive {
  let tail: Promise<unknown> = Promise.resolve()
  return task => {
    const result = tail.then(task)
    tail = result.catch(() => undefined)
    return result
  }
}

/**
 * Repeats an attempt in the queue until it gives something; between two attempts it waits for what `before` gives.
 * @param waitMs milliseconds for all of it
 * @param attempt undefined: not yet. Its `late` says that nobody waits for it any more
 * @throws what the attempt throws; `failure` when the time is over
 */
export async function repeatInTime<T>(
  waitMs: number,
  exclusive: Exclusive,
  attempt: (late: () => boolean) => Promise<T | undefined>,
  { before, failure }: { before: () => Promise<void> | undefined; failure: () => Failure },
): Promise<T> {
  const over = new AbortController()
  const late = delay(waitMs, 'late' as const, { signal: over.signal, ref: false }).catch(
    () => 'late' as const,
  )
  let isLate = false
  try {
    for (;;) {
      const turn = exclusive(() => (isLate ? Promise.resolve(undefined) : attempt(() => isLate)))
      turn.catch(() => undefined)
      const got = await Promise.race([turn, late])
      if (got !== undefined && got !== 'late') return got
      const waited = got === 'late' ? got : await Promise.race([before(), late])
      if (waited === 'late') throw failure()
    }
  } finally {
    isLate = true
    over.abort()
  }
}
