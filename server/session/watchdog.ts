// The watchdog of a domain's sessions: looks at what is moved, at the overlays and at their file system, and says which
// limit is broken. It ends nothing itself.

import { stat, statfs } from 'node:fs/promises'
import path from 'node:path'
import type { Failure } from '../../shared/failures.ts'
import { shareOf } from '../../shared/quantities.ts'
import type { DomainSettings } from '../config/schema.ts'
import {
  ageFailure,
  isStalled,
  overlayFailure,
  overlayLimit,
  reserveFailure,
  stallFailure,
  withSample,
  type Sample,
} from './limits.ts'
import { isHeldByOperator, movedBy, type Session } from './session.ts'

/** @returns the reason to end the session, if there is one now. Called every second; looks that overlap are left out. */
export type Watchdog = (session: Session) => Promise<Failure | undefined>

/** How often the overlays are looked at. */
const OVERLAYS_EVERY_MS = 2000

type Limits = Pick<DomainSettings, 'session' | 'overlay'>

export function createWatchdog({ session: limits, overlay }: Limits): Watchdog {
  let watched: Session | undefined
  let samples: Sample[] = []
  let overlaysSeen = 0
  let looking = false

  function progress(session: Session, now: number): Failure | undefined {
    if (session !== watched) samples = []
    watched = session
    // Who holds a session by hand may take all the time up to its age.
    if (isHeldByOperator(session)) {
      samples = []
      return undefined
    }
    samples = withSample(samples, { at: now, moved: movedBy(session) }, limits.stall)
    return isStalled(samples, limits.stall, limits.floor)
      ? stallFailure(limits.stall, limits.floor)
      : undefined
  }

  async function overlays(session: Session): Promise<Failure | undefined> {
    const { disks } = session.frozen
    let all = 0
    for (const { target, overlay: file, size } of disks) {
      const bytes = await allocatedBytes(file)
      all += bytes
      const limit = overlayLimit(overlay.max, size)
      if (bytes > limit) return overlayFailure(target, bytes, limit)
    }
    // Without an overlay nothing of ours can fill the file system.
    if (all === 0) return undefined
    for (const directory of new Set(disks.map(disk => path.dirname(disk.overlay)))) {
      const found = await statfs(directory).catch(() => undefined)
      if (!found) continue
      const reserve = shareOf(overlay.reserve, found.blocks * found.bsize)
      const free = found.bavail * found.bsize
      if (free < reserve) return reserveFailure(directory, free, reserve)
    }
    return undefined
  }

  return async session => {
    if (Date.now() - session.frozenAt > limits.maxAge) return ageFailure(limits.maxAge)
    const now = performance.now()
    const stalled = progress(session, now)
    if (stalled || looking || now - overlaysSeen < OVERLAYS_EVERY_MS) return stalled
    looking = true
    overlaysSeen = now
    try {
      return await overlays(session)
    } finally {
      looking = false
    }
  }
}

/** What a file takes on disk, in bytes; 0 for one that is not there. */
export async function allocatedBytes(file: string): Promise<number> {
  const found = await stat(file).catch(() => undefined)
  return (found?.blocks ?? 0) * 512
}
