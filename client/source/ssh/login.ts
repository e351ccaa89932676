// One ssh connection to one host: the host proves who it is, then we do. Nothing is run here yet.

import { connect as connectSocket } from 'node:net'
import type { Duplex } from 'node:stream'
import ssh2, { type Algorithms, type Client } from 'ssh2'
import { Failure } from '../../../shared/failures.ts'
import { harmless } from '../harmless.ts'
import type { NamedSource } from '../source.ts'
import { hostKeyAlgorithms, judgeHostKey, named, shownKey, unknownHost } from './host-key.ts'
import type { Keys } from './keys.ts'
import { addKnownKey, knownKeys, type KnownKey } from './known-hosts.ts'
import type { Hop } from './settings.ts'

/** TCP, key exchange and login together. */
const CONNECT_MS = 20_000
/** A host that answers none of so many questions is gone. */
const ALIVE_MS = 15_000
const ALIVE_COUNT = 3
/** How long our goodbye may take to be sent. */
const GOODBYE_MS = 1_000

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
  compress: ['none'],
} satisfies Algorithms

export interface SshConnection {
  readonly hop: Hop
  readonly client: Client
  /** Milliseconds to the host and back, while nothing else was under way. */
  readonly roundTripMs: number
  /** Why it is lost; undefined while it is not. */
  loss(): string | undefined
  /** Calls back once, when it is over. */
  onEnd(callback: () => void): void
  /** Never rejects; nothing is left of it afterwards. */
  close(): Promise<void>
}

/**
 * Logs in to one host. @param through the connection to the host before, when there is one
 * @throws Failure UNSAFE for a host key that is not known, another one or revoked; SOURCE_REFUSED for a refused login;
 * SOURCE_UNREACHABLE for the rest; the signal's reason
 */
export async function logIn(
  hop: Hop,
  source: NamedSource,
  keys: Keys,
  through: SshConnection | undefined,
  signal: AbortSignal,
): Promise<SshConnection> {
  const known = await knownKeys(hop, signal)
  signal.throwIfAborted()
  const { socket, roundTripMs } = await openSocket(hop, through, signal)
  const client = new ssh2.Client()
  let lost: string | undefined
  let ended = false
  const endings: (() => void)[] = []
  client.on('close', () => {
    ended = true
    lost ??= 'the host ended it'
    for (const tell of endings.splice(0)) tell()
  })
  const onEnd = (callback: () => void): void => {
    if (ended) callback()
    else endings.push(callback)
  }
  try {
    await proveBoth(hop, source, keys, known, client, socket, signal)
  } catch (error) {
    client.on('error', () => undefined)
    socket.on('error', () => undefined).destroy()
    throw error
  }
  // An error is followed by the connection's end.
  client.on('error', error => (lost ??= harmless(error.message)))

  return {
    hop,
    client,
    roundTripMs: roundTripMs(),
    loss: () => lost,
    onEnd,
    async close() {
      lost ??= 'it was closed here'
      if (ended) return
      const over = new Promise<void>(resolve => onEnd(resolve))
      const late = setTimeout(() => socket.destroy(), GOODBYE_MS)
      // Our goodbye is sent; the host's is not waited for.
      socket.once('finish', () => socket.destroy())
      client.end()
      await over
      clearTimeout(late)
    },
  }
}

/** A byte stream to the host's sshd. @returns also how long it took to be there and back, once it is connected */
async function openSocket(
  hop: Hop,
  through: SshConnection | undefined,
  signal: AbortSignal,
): Promise<{ socket: Duplex; roundTripMs: () => number }> {
  let began = performance.now()
  let took = 0
  if (!through) {
    const { host, port, family } = hop
    const socket = connectSocket({ host, port, family, noDelay: true })
    // Not the name's look-up, and not an address that did not answer.
    socket.on('connectionAttempt', () => (began = performance.now()))
    socket.once('connect', () => (took = performance.now() - began))
    return { socket, roundTripMs: () => took }
  }
  const socket = await new Promise<Duplex>((resolve, reject) => {
    const fail = (why: string): void =>
      reject(
        new Failure(
          'SOURCE_UNREACHABLE',
          `cannot reach ${at(hop)} through ${through.hop.name}: ${why}`,
        ),
      )
    const late = setTimeout(() => fail('no answer in time'), CONNECT_MS)
    const stop = (): void => reject(signal.reason as Error)
    signal.addEventListener('abort', stop, { once: true })
    try {
      through.client.forwardOut('127.0.0.1', 0, hop.host, hop.port, (error, channel) => {
        clearTimeout(late)
        signal.removeEventListener('abort', stop)
        if (error) fail(harmless(error.message))
        else resolve(channel)
      })
    } catch (error) {
      fail(through.loss() ?? String(error))
    }
  })
  took = performance.now() - began
  return { socket, roundTripMs: () => took }
}

function proveBoth(
  hop: Hop,
  source: NamedSource,
  keys: Keys,
  known: readonly KnownKey[],
  client: Client,
  socket: Duplex,
  signal: AbortSignal,
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
    const onError = (error: Error & { level?: string }): void => {
      // The next key is tried.
      if (error.level === 'agent') unsigned.push(error.message)
      else settle(denied ?? explain(error))
    }
    const onClose = (): void =>
      settle(denied ?? unreachable(hop, 'the connection ended before the login'))
    const explain = (error: Error & { level?: string }): Failure => {
      const { level } = error
      const message = harmless(error.message)
      if (level === 'client-authentication' || /too many authentication failures/i.test(message))
        return refused(hop, source, keys, { tried, unsigned, methods }, error)
      if (level === 'client-timeout')
        return unreachable(hop, `no answer within ${CONNECT_MS / 1000} s`, error)
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
      keepaliveInterval: ALIVE_MS,
      keepaliveCountMax: ALIVE_COUNT,
      algorithms: { ...ALGORITHMS, serverHostKey: hostKeyAlgorithms(hop, known) },
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

function refused(
  hop: Hop,
  source: NamedSource,
  { locked, notes }: Keys,
  {
    tried,
    unsigned,
    methods,
  }: { tried: readonly string[]; unsigned: readonly string[]; methods: readonly string[] },
  cause: Error,
): Failure {
  const more = [
    ...locked.map(
      file => `${file} is encrypted, the agent does not have it, and nobody gave its passphrase`,
    ),
    ...notes,
    ...unsigned,
    ...(methods.includes('publickey') ? [] : [`it wants ${harmless(methods.join(' or '))}`]),
  ]
  const why = [`tried: ${tried.join(', ') || 'no key, there is none'}`, ...more].join('; ')
  const remedy =
    locked.length > 0
      ? `ssh-add ${locked[0] ?? ''}, or use a key without a passphrase that is allowed nothing but the gate`
      : /too many/i.test(cause.message)
        ? `name the one key to use: sources.${source.name}.ssh.identity, with ssh.options: ['IdentitiesOnly=yes']`
        : hop.pinnable
          ? 'on the source run: clone-server authorize'
          : undefined
  return new Failure('SOURCE_REFUSED', `${at(hop)} refuses the login as ${hop.user}; ${why}`, {
    cause,
    remedy,
  })
}

function unreachable(hop: Hop, why: string, cause?: Error): Failure {
  return new Failure('SOURCE_UNREACHABLE', `cannot connect to ${at(hop)} by ssh: ${why}`, { cause })
}

function at({ name, host, port }: Hop): string {
  return `${name === host ? host : `${name} (${host})`} port ${port}`
}
