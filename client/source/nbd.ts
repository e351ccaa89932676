// Where a source's NBD server is, and the connection to one disk of one session.

import { exportName } from '../../shared/names.ts'
import { connectNbd, type NbdAddress, type NbdConnection } from '../../shared/nbd/client.ts'
import type { CloneConfig } from '../config/effective.ts'
import type { Source } from '../config/schema.ts'
import { tlsOf } from './tls.ts'

export function nbdAddress(source: Source): NbdAddress {
  return source.transport === 'unix'
    ? { path: source.socket }
    : { host: source.host ?? '', port: source.port }
}

/** Connects to `domain/target@token`: the first connection of a session freezes the domain. */
export async function connectDisk(
  clone: CloneConfig,
  target: string,
  token: string,
  signal: AbortSignal,
): Promise<NbdConnection> {
  return connectNbd(nbdAddress(clone.source), {
    exportName: exportName(clone.domain, target, token),
    signal,
    stallMs: clone.stallMs,
    tls: await tlsOf(clone.source),
  })
}
