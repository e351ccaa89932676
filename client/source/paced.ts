// A disk's connection that reads no faster than this process may.

import type { Rate } from '../../shared/rate.ts'
import type { DiskConnection } from './lasting.ts'

/** Each read waits for its turn before it is asked for, so that no request is under way that the limit holds back. */
export function paced(connection: DiskConnection, rate: Rate, signal: AbortSignal): DiskConnection {
  return {
    ...connection,
    async read(offset, into) {
      await rate.take(into.length, signal)
      await connection.read(offset, into)
    },
  }
}
