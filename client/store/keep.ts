// The keep policy: which generations it wants, and why each. Pure; order comes from seq, only the grid looks at instants.

import type { Sound } from './generation.ts'

/** How many to keep by each rule; 0 is a rule that keeps nothing. */
export interface KeepPolicy {
  /** The newest so many. */
  readonly last: number
  /** For each of the so many most recent hours, days, ISO weeks and months (UTC) that have one: the newest in it. */
  readonly hourly: number
  readonly daily: number
  readonly weekly: number
  readonly monthly: number
}

/** What the policy looks at. */
export interface Dated {
  readonly id: string
  readonly seq: number
  /** The recovery point's instant, ISO 8601 in UTC. */
  readonly instant: string
}

/** A generation as the policy looks at it. */
export function datedOf({ id, generation: { seq, recoveryPoint } }: Sound): Dated {
  return { id, seq, instant: recoveryPoint.instant }
}

/** The rules of the grid, each with the name of the period that an instant is in. */
const GRID: readonly (readonly [Exclude<keyof KeepPolicy, 'last'>, (instant: Date) => string])[] = [
  ['hourly', instant => instant.toISOString().slice(0, 13)],
  ['daily', instant => instant.toISOString().slice(0, 10)],
  ['weekly', isoWeek],
  ['monthly', instant => instant.toISOString().slice(0, 7)],
]

/**
 * Why each generation is kept: `last 2 of 3, daily 2026-11-20`. The newest always is, whatever the policy says. Periods are
 * counted back from the newest seq: a clock that jumped costs a place in the grid, and never a newer generation.
 * @param undamaged in any order. @returns id -> reason, for those that are kept
 */
export function keepReasons(
  undamaged: readonly Dated[],
  policy: KeepPolicy,
): ReadonlyMap<string, string> {
  const newestFirst = undamaged.toSorted((a, b) => b.seq - a.seq || b.id.localeCompare(a.id))
  const reasons = new Map<string, string[]>()
  const keep = ({ id }: Dated, reason: string): void => {
    reasons.set(id, [...(reasons.get(id) ?? []), reason])
  }
  const last = Math.max(1, policy.last)
  newestFirst.slice(0, last).forEach((one, at) => keep(one, `last ${at + 1} of ${last}`))
  for (const [rule, periodOf] of GRID) {
    const seen = new Set<string>()
    for (const one of newestFirst) {
      const period = periodOf(new Date(one.instant))
      if (seen.has(period) || seen.size >= policy[rule]) continue
      seen.add(period)
      keep(one, `${rule} ${period}`)
    }
  }
  return new Map([...reasons].map(([id, all]) => [id, all.join(', ')]))
}

/** The policy in a few words: `last 3, daily 7`. */
export function describePolicy(policy: KeepPolicy): string {
  return Object.entries(policy)
    .filter(([, count]) => count > 0)
    .map(([rule, count]) => `${rule} ${count}`)
    .join(', ')
}

const DAY = 86_400_000

/** ISO 8601: weeks begin on Monday and belong to the year of their Thursday. */
function isoWeek(instant: Date): string {
  const weekday = (instant.getUTCDay() + 6) % 7
  const thursday = new Date(instant.getTime() + (3 - weekday) * DAY)
  const year = thursday.getUTCFullYear()
  const week = 1 + Math.floor((thursday.getTime() - Date.UTC(year, 0, 1)) / (7 * DAY))
  return `${year}-W${String(week).padStart(2, '0')}`
}
