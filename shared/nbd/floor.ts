// A peer that drips: bytes that come, but so few that nothing will ever be whole. Counted in windows of the stall time.

import { NBD_CMD_READ } from './constants.ts'
import type { Expected } from './replies.ts'

/**
 * Bytes per second; with that much asked for, less is a stall. Far below any way that is worth a pull, because many
 * connections may share a slow one.
 */
const FLOOR = 1024
/** The least answer there is, to whatever was asked. */
const LEAST_REPLY = 16

export interface Floor {
  /** Begins a window, in which so much must come as is in flight now, or as the floor says. */
  begin(inFlight: Iterable<Pick<Expected, 'type' | 'length'>>): void
  came(bytes: number): void
  /** When the window began, by performance.now(). */
  readonly since: number
  /** What came in it, bytes. */
  readonly total: number
  /** Whether less came than had to. */
  isBelow(): boolean
}

export function createFloor(windowMs: number): Floor {
  let since = 0
  let total = 0
  let wanted = 0
  return {
    begin(inFlight) {
      let asked = 0
      for (const { type, length } of inFlight) asked += type === NBD_CMD_READ ? length : LEAST_REPLY
      wanted = Math.min(asked, (FLOOR * windowMs) / 1000)
      since = performance.now()
      total = 0
    },
    came: bytes => (total += bytes),
    get since() {
      return since
    },
    get total() {
      return total
    },
    isBelow: () => total < wanted,
  }
}
