// How one source is reached while one command runs: its gate, and its disks by `transport`. The ssh connections that both
// may share are opened when they are needed.

import { Failure } from '../../shared/failures.ts'
import { connectNbd, NbdError, openNbd } from '../../shared/nbd/client.ts'
import type { NbdAddress, NbdConnection, NbdOptions } from '../../shared/nbd/client.ts'
import type { Source } from '../config/schema.ts'
import type { Carrier } from './carrier.ts'
import { startChild } from './gate-child.ts'
import type { NamedSource } from './source.ts'
import type { SshPool } from './ssh/pool.ts'
import { tlsOf } from './tls.ts'

/** Disposing closes all connections that it opened. */
export interface Transport extends AsyncDisposable {
  /** Starts the source's gate. @throws Failure; the signal's reason */
  startGate(signal: AbortSignal): Promise<Carrier>
  /** Opens an export. @throws NbdError as `connectNbd`; Failure as the gate's; the signal's reason */
  openExport(options: NbdOptions & { signal: AbortSignal }): Promise<NbdConnection>
}

/** Connects to nothing yet. */
export function openTransport(source: NamedSource): Transport {
  let pool: SshPool | undefined
  const ssh = async (): Promise<SshPool> => {
    const { sshPool } = await import('./ssh/pool.ts')
    return (pool ??= sshPool(source))
  }
  const bySsh = source.transport === 'ssh'
  return {
    startGate: async signal =>
      source.gate === 'local' ? startChild(source.gateCommand) : (await ssh()).exec('gate', signal),
    openExport: async options =>
      bySsh
        ? openOverSsh(await ssh(), options)
        : connectNbd(nbdAddress(source), { ...options, tls: await tlsOf(source) }),
    [Symbol.asyncDispose]: async () => pool?.[Symbol.asyncDispose](),
  }
}

/** Where a source's NBD server listens. */
export function nbdAddress(source: Source): NbdAddress {
  return source.transport === 'unix'
    ? { path: source.socket }
    : { host: source.host ?? '', port: source.port }
}

async function openOverSsh(
  pool: SshPool,
  options: NbdOptions & { signal: AbortSignal },
): Promise<NbdConnection> {
  const command = await pool.exec(`nbd ${options.exportName}`, options.signal)
  try {
    return await openNbd(command.stream, options)
  } catch (error) {
    command.abandon()
    // What the source said on stderr is its answer, and a better one than that the bytes ended.
    const said = error instanceof NbdError && error.fault === 'LOST' ? error.cause : undefined
    throw said instanceof Failure && said.code !== 'SOURCE_UNREACHABLE' ? said : error
  }
}
