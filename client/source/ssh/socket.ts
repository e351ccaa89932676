// A byte stream to a host's sshd: a socket, or a channel through the host before.

import { connect as connectSocket } from 'node:net'
import type { Duplex } from 'node:stream'
import { Failure } from '../../../shared/failures.ts'
import { harmless } from '../harmless.ts'
import type { SshConnection } from './login.ts'
import { at } from './login-failures.ts'
import type { Hop } from './settings.ts'

/** How long the host before may take to open a channel. */
const CONNECT_MS = 20_000

/**
 * @throws Failure SOURCE_UNREACHABLE when the host before does not get through; the signal's reason
 */
export async function openSocket(
  hop: Hop,
  through: SshConnection | undefined,
  signal: AbortSignal,
): Promise<Duplex> {
  if (!through) {
    const { host, port, family } = hop
    return connectSocket({ host, port, family, noDelay: true })
  }
  return new Promise<Duplex>((resolve, reject) => {
    const settle = (): void => {
      clearTimeout(late)
      signal.removeEventListener('abort', stop)
    }
    const fail = (why: string): void => {
      settle()
      reject(
        new Failure(
          'SOURCE_UNREACHABLE',
          `cannot reach ${at(hop)} through ${through.hop.name}: ${why}`,
        ),
      )
    }
    const stop = (): void => {
      settle()
      reject(signal.reason as Error)
    }
    const late = setTimeout(() => fail('no answer in time'), CONNECT_MS)
    signal.addEventListener('abort', stop, { once: true })
    try {
      through.client.forwardOut('127.0.0.1', 0, hop.host, hop.port, (error, channel) => {
        settle()
        if (error) fail(harmless(error.message))
        else resolve(channel)
      })
    } catch (error) {
      fail(through.loss()?.message ?? String(error))
    }
  })
}
