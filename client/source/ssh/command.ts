// A command on the source through ssh, as a stream that says why it ended.

import { Duplex } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import type { ClientChannel } from 'ssh2'
import { Failure } from '../../../shared/failures.ts'
import { GRACE_MS, type Carrier } from '../carrier.ts'
import { harmless } from '../harmless.ts'
import { codeOfExit, lastWords, type Ending } from '../last-words.ts'
import { AUTHORIZE } from './login-failures.ts'
import type { SshConnection } from './login.ts'

export interface RemoteCommand extends Carrier {
  /**
   * Input and output in one. Ends when the command ends well; fails with a Failure that has its last words when it does
   * not, or the connection is lost.
   */
  readonly stream: Duplex
}

/** sshd takes no more commands on this connection. */
export class NoMoreChannels extends Error {}

/** How long sshd may take to start a command; the command itself takes its time afterwards. */
const START_MS = 30_000

/** The programs' own word for a command that the shell there does not know: no forced command was authorized. */
const NOT_FOUND = 127

/** @throws NoMoreChannels; Failure SOURCE_UNREACHABLE when the connection is lost or silent; SOURCE_REFUSED; TRANSFER */
export async function startCommand(
  connection: SshConnection,
  command: string,
): Promise<RemoteCommand> {
  const channel = await openChannel(connection, command)
  connection.follow(channel)
  const words = lastWords(channel.stderr)
  const stream = new Duplex({
    read: () => void channel.resume(),
    write: (bytes: Buffer, _encoding, done) => void channel.write(bytes, () => done()),
    final: done => {
      channel.end()
      done()
    },
    destroy: (error, done) => {
      abandon(channel)
      done(error)
    },
  })
  // It brought more than was allowed: nobody waits for the rest.
  channel.on('error', (error: Error) => void stream.destroy(error))
  channel.on('data', (bytes: Buffer) => {
    if (!stream.destroyed && !stream.push(bytes)) channel.pause()
  })
  const over = new Promise<Ending>(resolve =>
    channel.once('close', (exit: number | null | undefined, signal?: string) => {
      const ending = endingOf(connection, words(), exit, signal)
      if (exit === 0) stream.push(null)
      else stream.destroy(new Failure(ending.code, ending.reason, { remedy: ending.remedy }))
      resolve(ending)
    }),
  )
  // Who reads the stream is told; who does not, asks `over`.
  stream.on('error', () => undefined)

  return {
    stream,
    output: stream,
    input: stream,
    over,
    abandon: () => void stream.destroy(),
    async [Symbol.asyncDispose]() {
      stream.end()
      const waited = new AbortController()
      await Promise.race([
        over,
        sleep(GRACE_MS, undefined, { signal: waited.signal }).catch(() => undefined),
      ])
      waited.abort()
      stream.destroy()
    },
  }
}

function openChannel(connection: SshConnection, command: string): Promise<ClientChannel> {
  const { name } = connection.hop
  return new Promise((resolve, reject) => {
    let isLate = false
    const late = setTimeout(() => {
      isLate = true
      const seconds = START_MS / 1000
      reject(
        new Failure('SOURCE_UNREACHABLE', `${name} does not start ${command} within ${seconds} s`),
      )
    }, START_MS)
    const fail = (error: unknown): void => {
      clearTimeout(late)
      const loss = connection.loss()
      const { reason, message: said } = error as Error & { reason?: unknown }
      const message = harmless(said)
      if (loss !== undefined) reject(loss)
      else if (typeof reason === 'number') reject(new NoMoreChannels(message))
      else reject(new Failure('SOURCE_REFUSED', `${name} refuses to run ${command}: ${message}`))
    }
    try {
      connection.client.exec(command, (error, channel) => {
        clearTimeout(late)
        if (error) fail(error)
        else if (isLate) abandon(channel)
        else resolve(channel)
      })
    } catch (error) {
      fail(error)
    }
  })
}

function abandon(channel: ClientChannel): void {
  channel.destroy()
  // What still comes must be taken, or the channel never closes.
  channel.resume()
  channel.stderr.resume()
}

function endingOf(
  connection: SshConnection,
  { reason, remedy }: { reason: string; remedy: string | undefined },
  exit: number | null | undefined,
  signal: string | undefined,
): Ending {
  const loss = connection.loss()
  if (exit === undefined && loss !== undefined)
    return { code: loss.code, reason: loss.message, remedy: loss.remedy }
  if (reason === '')
    return {
      code: codeOfExit(exit ?? undefined),
      reason: `it ended with ${harmless(signal) ?? (typeof exit === 'number' ? `exit status ${exit}` : 'no word')}`,
    }
  const authorize = exit === NOT_FOUND ? AUTHORIZE : undefined
  return { code: codeOfExit(exit ?? undefined), reason, remedy: remedy ?? authorize }
}
