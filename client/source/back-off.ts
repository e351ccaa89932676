// Getting a lost connection back: the pauses between tries, what is worth another try, and when to give up.

import { setTimeout as sleep } from 'node:timers/promises'
import { Failure, toFailure } from '../../shared/failures.ts'
import { isTransportLoss } from '../../shared/nbd/client.ts'

const FIRST_PAUSE_MS = 500
const LONGEST_PAUSE_MS = 10_000

/** One try to get a connection back, told when it begins. */
export interface Retry {
  /** What was lost: `gate`, or a disk's target. */
  readonly what: string
  /** Counted since it last worked, from 1. */
  readonly tries: number
  /** Why it was lost, or why the try before failed. */
  readonly reason: string
}
export type OnRetry = (retry: Retry) => void

export interface BackOff {
  /** It works again: the next loss begins with the shortest pause. */
  settled(): void
  /**
   * Tries until one succeeds, 0.5 s after the loss and then after ever longer pauses.
   * @param deadline by performance.now(): when to give up, also in the middle of a try
   * @param attempt must end when its signal fires; only its failures of transport are worth another try
   * @throws Failure that names the loss and what came of it; the signal's reason
   */
  again<T>(
    loss: Failure,
    deadline: number,
    attempt: (signal: AbortSignal) => Promise<T>,
  ): Promise<T>
}

/** @param what as in `Retry`. @param signal ends the trying at once */
export function backOff(what: string, signal: AbortSignal, onRetry: OnRetry): BackOff {
  let pause = FIRST_PAUSE_MS
  let tries = 0

  return {
    settled() {
      pause = FIRST_PAUSE_MS
      tries = 0
    },
    async again(loss, deadline, attempt) {
      let last = loss
      for (;;) {
        signal.throwIfAborted()
        const left = deadline - performance.now()
        if (left <= 0) throw givenUp(loss, last, tries)
        // The nearer the end, the denser: what is back in the last seconds is still in time.
        const wait = Math.max(FIRST_PAUSE_MS, Math.min(pause, left / 2))
        await sleep(wait, undefined, { signal }).catch(() => signal.throwIfAborted())
        pause = Math.min(2 * pause, LONGEST_PAUSE_MS)
        onRetry({ what, tries: ++tries, reason: last.message })
        try {
          return await within(deadline, signal, attempt)
        } catch (error) {
          signal.throwIfAborted()
          last = toFailure(error)
          if (!isPassing(error)) throw afterLoss(loss, last)
        }
      }
    },
  }
}

/** Whether the same try may succeed a moment later. */
export function isPassing(error: unknown): boolean {
  return isTransportLoss(error) || toFailure(error).code === 'SOURCE_UNREACHABLE'
}

async function within<T>(
  deadline: number,
  signal: AbortSignal,
  attempt: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const late = new AbortController()
  const timer = setTimeout(
    () => late.abort(new Failure('SOURCE_UNREACHABLE', 'the last try took too long')),
    Math.max(0, deadline - performance.now()),
  )
  try {
    return await attempt(AbortSignal.any([signal, late.signal]))
  } finally {
    clearTimeout(timer)
  }
}

function givenUp(loss: Failure, last: Failure, tries: number): Failure {
  const given =
    tries === 0
      ? 'again and again'
      : `not back after ${tries} ${tries === 1 ? 'try' : 'tries'}${last === loss ? '' : `, the last one: ${last.message}`}`
  return new Failure(loss.code, `${loss.message}; ${given}`, {
    cause: loss,
    remedy: loss.remedy,
  })
}

function afterLoss(loss: Failure, final: Failure): Failure {
  return new Failure(final.code, `${loss.message}; when connecting again: ${final.message}`, {
    cause: final,
    remedy: final.remedy,
  })
}
