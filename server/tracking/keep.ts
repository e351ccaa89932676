// Which recovery-point bitmaps stay: those that a standby holds, and few enough others. Losing one early costs a comparison by
// hash, never correctness.

/** For each domain; each costs QEMU 2 MiB per TiB of disk. */
const MOST = 8
const MAX_AGE_MS = 14 * 24 * 3600_000

/** Client -> the recovery point that it acknowledged last. */
export type Acknowledged = Readonly<Record<string, string>>

/**
 * What a new recovery point pushes out: whatever is too old, then what nobody acknowledged, the oldest first, so that pulls
 * that fail again and again do not push out what the standby holds.
 * @param points with the new one. @returns those to remove
 */
export function pushedOut(
  points: readonly string[],
  newest: string,
  acknowledged: Acknowledged,
  now: number,
): string[] {
  const held = new Set(Object.values(acknowledged))
  const others = points.filter(point => point !== newest).sort()
  const old = others.filter(point => now - instantOf(point) > MAX_AGE_MS)
  const kept = others.filter(point => !old.includes(point))
  const inTurn = [...kept.filter(one => !held.has(one)), ...kept.filter(one => held.has(one))]
  return [...old, ...inTurn.slice(0, Math.max(0, kept.length + 1 - MOST))]
}

/** What an acknowledgement makes useless: older points that no client holds. */
export function outdated(
  points: readonly string[],
  point: string,
  acknowledged: Acknowledged,
): string[] {
  const held = new Set(Object.values(acknowledged))
  return points.filter(one => one < point && !held.has(one))
}

/** A recovery point's id begins with its instant. */
function instantOf(point: string): number {
  const [, date = '', time = ''] = /^(\d{8})T(\d{6})Z/.exec(point) ?? []
  const digits = `${date}${time}`
  return Date.parse(digits.replace(/^(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)$/, '$1-$2-$3T$4:$5:$6Z'))
}
