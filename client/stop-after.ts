// The time that a pull may take until it has read everything.

import { Failure } from '../shared/failures.ts'
import { formatDuration } from '../shared/quantities.ts'

/**
 * Aborts `over` when the time is up. @param limitMs undefined: never
 * @returns a function that lifts the limit
 */
export function stopAfter(over: AbortController, limitMs: number | undefined): () => void {
  if (limitMs === undefined) return () => undefined
  const timer = setTimeout(
    () =>
      over.abort(
        new Failure('PARTLY', `stopped after ${formatDuration(limitMs)}, as told`, {
          remedy: 'pull again with more time: --max-duration, or maxDuration in standby.yaml',
        }),
      ),
    limitMs,
  )
  return () => clearTimeout(timer)
}
