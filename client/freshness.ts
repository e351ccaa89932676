// Freshness: the age of the newest generation's recovery point against the domain's RPO. Pure.

import type { Generation } from './store/generation.ts'

/** Beyond this the clocks cannot be trusted to say an age. */
const MAX_OFFSET_MS = 5 * 60_000

export interface Freshness {
  readonly state: 'fresh' | 'stale' | 'none' | 'unknown'
  /** Milliseconds; undefined when there is no generation or it cannot be known. */
  readonly ageMs: number | undefined
  /** Why it is unknown. */
  readonly reason?: string
}

/** @param newest the newest sound generation. @param now this host's clock, milliseconds since the epoch */
export function freshness(
  newest: Generation | undefined,
  rpoMs: number,
  now = Date.now(),
): Freshness {
  if (!newest) return { state: 'none', ageMs: undefined }
  const { instant, clockSkewMs } = newest.recoveryPoint
  const ageMs = now + clockSkewMs - Date.parse(instant)
  if (Math.abs(clockSkewMs) > MAX_OFFSET_MS)
    return {
      state: 'unknown',
      ageMs: undefined,
      reason: `the hosts' clocks differed by ${Math.round(clockSkewMs / 1000)} s`,
    }
  if (ageMs < 0)
    return { state: 'unknown', ageMs: undefined, reason: 'its recovery point lies in the future' }
  return { state: ageMs <= rpoMs ? 'fresh' : 'stale', ageMs }
}

/** A pull is due unless the newest generation is known to be younger than half the RPO. */
export function isDue({ ageMs }: Freshness, rpoMs: number): boolean {
  return ageMs === undefined || ageMs >= rpoMs / 2
}
