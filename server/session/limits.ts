// The limits of a session as pure rules: when it has stalled, how large an overlay may grow, what stays free.

import { Failure } from '../../shared/failures.ts'
import { formatDuration, formatSize, shareOf, type Share } from '../../shared/quantities.ts'

/** What a session's readers had moved together at one moment. */
export interface Sample {
  /** Milliseconds of a clock that never jumps. */
  readonly at: number
  /** Bytes since the session began. */
  readonly moved: number
}

/** So long without a look, and nobody knows what happened meanwhile. */
const LOOK_GAP_MS = 10_000

/**
 * The samples that the next judgement needs: one that is at least `stall` old, and all after it. After a gap, in which the
 * host slept or serve stood still, it begins anew.
 * @param stall milliseconds
 */
export function withSample(samples: readonly Sample[], next: Sample, stall: number): Sample[] {
  const last = samples.at(-1)
  if (last === undefined || next.at - last.at > LOOK_GAP_MS) return [next]
  const needed = samples.findLastIndex(sample => next.at - sample.at >= stall)
  return [...samples.slice(Math.max(0, needed)), next]
}

/**
 * Whether the average over the last `stall` milliseconds is below the floor; never before there are samples of so long.
 * @param samples oldest first, as `withSample` keeps them
 * @param floor bytes per second; 0: never
 */
export function isStalled(samples: readonly Sample[], stall: number, floor: number): boolean {
  const newest = samples.at(-1)
  if (newest === undefined) return false
  const oldest = samples.findLast(sample => newest.at - sample.at >= stall)
  if (oldest === undefined) return false
  return newest.moved - oldest.moved < (floor * (newest.at - oldest.at)) / 1000
}

export function stallFailure(stall: number, floor: number): Failure {
  return new Failure(
    'SOURCE_REFUSED',
    `the session moved fewer than ${formatSize(floor)} a second for ${formatDuration(stall)}`,
    {
      remedy:
        "find what holds the reader up (its disk, the network); source.yaml's session.floor and session.stall set the limit",
    },
  )
}

export function ageFailure(maxAge: number): Failure {
  return new Failure(
    'SOURCE_REFUSED',
    `the session is older than session.maxAge (${formatDuration(maxAge)})`,
    { remedy: 'copy faster, or raise session.maxAge in source.yaml' },
  )
}

/** No share of a base is so small that an overlay below this is too large, and no session needs more room than this. */
const OVERLAY_LEAST = 1024 ** 3

/** What an overlay may take on disk, in bytes. @param base size of its base in bytes */
export function overlayLimit(max: Share, base: number): number {
  return typeof max === 'number' ? max : Math.max(shareOf(max, base), OVERLAY_LEAST)
}

/** Room that must be there above the reserve before a session begins, in bytes. @param bases size of all bases together */
export function roomNeeded(max: Share, bases: number): number {
  return Math.min(shareOf(max, bases), OVERLAY_LEAST)
}

export function overlayFailure(target: string, bytes: number, limit: number): Failure {
  return new Failure(
    'SOURCE_REFUSED',
    `the overlay of disk ${target} grew to ${formatSize(bytes)}, over its limit of ${formatSize(limit)}`,
    {
      remedy: 'pull when the guest writes less, or raise overlay.max in source.yaml',
    },
  )
}

export function reserveFailure(directory: string, free: number, reserve: number): Failure {
  return new Failure(
    'SOURCE_REFUSED',
    `${directory}, where the overlays are, has ${formatSize(free)} free, less than its reserve of ${formatSize(reserve)}`,
    { remedy: `free space there, or lower overlay.reserve in source.yaml` },
  )
}
