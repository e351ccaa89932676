// The connection to one disk of one session.

import { exportName } from '../../shared/names.ts'
import type { NbdConnection } from '../../shared/nbd/client.ts'
import type { CloneConfig } from '../config/effective.ts'
import type { Transport } from './transport.ts'

/** Connects to `domain/target@token`: the first connection of a session freezes the domain. */
export function connectDisk(
  transport: Transport,
  clone: CloneConfig,
  target: string,
  token: string,
  signal: AbortSignal,
): Promise<NbdConnection> {
  return transport.openExport({
    exportName: exportName(clone.domain, target, token),
    signal,
    stallMs: clone.stallMs,
  })
}
