// One ssh connection to one host: the host proves who it is, then we do. Nothing is run here yet.

import type { Duplex } from 'node:stream'
import ssh2, { type Algorithms, type Client, type ClientChannel } from 'ssh2'
import { Failure } from '../../../shared/failures.ts'
import { harmless } from '../harmless.ts'
import type { NamedSource } from '../source.ts'
import { hostKeyAlgorithms, judgeHostKey, named, shownKey, unknownHost } from './host-key.ts'
import type { Keys } from './keys.ts'
import { addKnownKey, knownKeys, type KnownKey } from './known-hosts.ts'
import { at, refused, unreachable } from './login-failures.ts'
import type { Hop } from './settings.ts'
import { openSocket } from './socket.ts'
import { watch, type Alive } from './watch.ts'

/** TCP, key exchange and login together. */
const CONNECT_MS = 20_000
/** How long our goodbye may take to be sent. */
const GOODBYE_MS = 1_000
/** The level of ssh2's error when the agent does not sign; all other errors are followed by the connection's end. */
const BY_AGENT = 'agent'

/** Fastest first by measurement (docs/architecture.md); nothing that OpenSSH itself would not offer today. */
const ALGORITHMS = {
  kex: [
    ...(['curve25519-sha256', 'curve25519-sha256@libssh.org', 'ecdh-sha2-nistp256'] as const),
    ...(['ecdh-sha2-nistp384', 'ecdh-sha2-nistp521', 'diffie-hellman-group16-sha512'] as const),
    ...(['diffie-hellman-group18-sha512', 'diffie-hellman-group14-sha256'] as const),
  ],
  cipher: [
    ...(['aes128-gcm@openssh.com', 'aes256-gcm@openssh.com'] as const),
    ...(['chacha20-poly1305@openssh.com', 'aes128-ctr', 'aes192-ctr', 'aes256-ctr'] as const),
  ],
  hmac: [
    ...(['hmac-sha2-256-etm@openssh.com', 'hmac-sha2-512-etm@openssh.com'] as const),
    ...(['hmac-sha2-256', 'hmac-sha2-512'] as const),
  ],
} satisfies Algorithms

export interface SshConnection {
  readonly hop: Hop
  readonly client: Client
  /** Holds a channel to what it is allowed (`Watch`). */
  follow(channel: ClientChannel): void
  /** Why it is lost; undefined while it is not. */
  loss(): Failure | undefined
  /** Calls back once, when it is over. */
  onEnd(callback: () => void): void
  /** Never rejects; nothing is left of it afterwards. */
  close(): Promise<void>
}

/** What an error of ssh2 is about. */
type LoginError = Error & { readonly level?: string }

export interface Login {
  /** The connection to the host before, when there is one. */
  readonly through: SshConnection | undefined
  readonly alive: Alive
  readonly signal: AbortSignal
}

/**
 * Logs in to one host.
 * @throws Failure UNSAFE for a host key that is not known, another one or revoked; SOURCE_REFUSED for a refused login;
 * SOURCE_UNREACHABLE for the rest; the signal's reason
 */
export async function logIn(
  hop: Hop,
  source: NamedSource,
  keys: Keys,
  login: Login,
): Promise<SshConnection> {
  const { through, alive, signal } = login
  const known = await knownKeys(hop, signal)
  signal.throwIfAborted()
  const socket = await openSocket(hop, through, signal)
  const client = new ssh2.Client()
  let lost: Failure | undefined
  let ended = false
  const endings: (() => void)[] = []
  const lose = (why: string): void => {
    lost ??= new Failure('SOURCE_UNREACHABLE', `the ssh connection to ${hop.name} is lost: ${why}`)
  }
  // Never taken off: ssh2 goes on with what came in the same segment while others take their turns at listening.
  client.on('error', (error: LoginError) => {
    if (error.level !== BY_AGENT) lose(harmless(error.message))
  })
  const finish = (): void => {
    ended = true
    lose('the host ended it')
    for (const tell of endings.splice(0)) tell()
  }
  client.on('close', finish)
  const onEnd = (callback: () => void): void => {
    if (ended) callback()
    else endings.push(callback)
  }
  /** Takes nothing more of it. A channel through another host may never say that it is closed. */
  const cut = (): void => {
    socket.removeAllListeners('data').on('error', () => undefined)
    socket.destroy()
    socket.resume()
    finish()
  }
  try {
    await proveBoth(hop, source, keys, known, client, socket, login)
  } catch (error) {
    cut()
    throw error
  } finally {
    keys.agent?.hangUp()
  }
  const onFault = (why: Failure): void => {
    lost ??= why
    cut()
  }
  const watching = watch({ hop, client, socket, silentMs: alive.silentMs, onFault })
  onEnd(() => watching.stop())

  return {
    hop,
    client,
    follow: channel => watching.follow(channel),
    loss: () => lost,
    onEnd,
    async close() {
      lose('it was closed here')
      if (ended) return
      const over = new Promise<void>(resolve => onEnd(resolve))
      const late = setTimeout(cut, GOODBYE_MS)
      // Our goodbye is sent; the host's is not waited for.
      socket.once('finish', () => socket.destroy())
      client.end()
      await over
      clearTimeout(late)
    },
  }
}

function proveBoth(
  hop: Hop,
  source: NamedSource,
  keys: Keys,
  known: readonly KnownKey[],
  client: Client,
  socket: Duplex,
  { alive, signal }: Login,
): Promise<void> {
  return new Promise((resolve, reject) => {
    /** What was found wrong with the host; ssh2 itself only says that it was denied. */
    let denied: Error | undefined
    let accepted: string | undefined
    const tried: string[] = []
    const unsigned: string[] = []
    let methods: readonly string[] = ['publickey']
    const stop = (): void => settle(signal.reason as Error)

    const settle = (error?: Error): void => {
      signal.removeEventListener('abort', stop)
      client.off('ready', settle).off('error', onError).off('close', onClose)
      if (error === undefined) resolve()
      else reject(error)
    }
    const onError = (error: LoginError): void => {
      // The next key is tried.
      if (error.level === BY_AGENT) unsigned.push(error.message)
      else settle(denied ?? explain(error))
    }
    const onClose = (): void =>
      settle(denied ?? unreachable(hop, 'the connection ended before the login'))
    const explain = (error: LoginError): Failure => {
      const { level } = error
      const message = harmless(error.message)
      if (level === 'client-authentication' || /too many authentication failures/i.test(message))
        return refused(hop, source.name, keys, { tried, unsigned, methods }, error)
      if (level === 'client-timeout') {
        const answer = keys.agent?.isAsked() ? `signature by the agent at ${hop.agent}` : 'answer'
        return unreachable(hop, `no ${answer} within ${CONNECT_MS / 1000} s`, error)
      }
      return level === 'handshake'
        ? new Failure('SOURCE_REFUSED', `${at(hop)} and we have no way to talk: ${message}`, {
            cause: error,
          })
        : unreachable(hop, message, error)
    }

    client.once('ready', settle).on('error', onError).once('close', onClose)
    if (signal.aborted) {
      stop()
      return
    }
    signal.addEventListener('abort', stop, { once: true })
    const offered = [...keys.candidates]
    client.connect({
      sock: socket,
      username: hop.user,
      readyTimeout: CONNECT_MS,
      keepaliveInterval: alive.askMs,
      // ssh2 only asks: it counts no byte but an answer as a sign of life.
      keepaliveCountMax: Infinity,
      algorithms: {
        ...{ ...ALGORITHMS, serverHostKey: hostKeyAlgorithms(hop, known) },
        compress: hop.compresses ? ['zlib@openssh.com', 'none'] : ['none'],
      },
      hostVerifier: (blob: Buffer, verify: (good: boolean) => void): void => {
        // Keys are exchanged again now and then.
        const again = blob.toString('base64') === accepted
        void (again ? Promise.resolve() : verifyHost(hop, source, known, blob)).then(
          () => {
            accepted = blob.toString('base64')
            verify(true)
          },
          (error: unknown) => {
            denied = error as Error
            verify(false)
          },
        )
      },
      authHandler: (left: readonly string[] | null, _partial, next): void => {
        // The first call has no answer of the host yet.
        methods = left ?? methods
        const candidate = methods.includes('publickey') ? offered.shift() : undefined
        if (candidate) tried.push(candidate.what)
        next(candidate?.method ?? (false as never))
      },
    })
  })
}

/** @throws Failure UNSAFE; STANDBY_IO when a new key cannot be kept */
async function verifyHost(
  hop: Hop,
  source: NamedSource,
  known: readonly KnownKey[],
  blob: Buffer,
): Promise<void> {
  const shown = shownKey(blob)
  if (judgeHostKey(hop, known, shown) === 'known') return
  if (!source.user.acceptsNewHostKeys) throw unknownHost(hop, known, shown, source.name)
  const file = await addKnownKey(hop, shown.type, shown.key)
  source.user.tell(
    `${source.name}: accepted the new host key of ${hop.name}: ${named(shown)}, kept in ${file}`,
  )
}
