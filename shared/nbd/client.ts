// The NBD client's public face: connect, haggle, hand over the connection. docs/protocol.md says which servers
// offer what; faults.ts lists every way it fails.

import type { Duplex } from 'node:stream'
import { connection, type NbdConnection } from './connection.ts'
import { NBD_OPT_GO, NBD_OPT_INFO } from './constants.ts'
import type { Decoder } from './decode.ts'
import { NbdError } from './faults.ts'
import {
  abort,
  greet,
  info,
  list,
  listMetaContexts,
  setMetaContexts,
  startTls,
  structuredReply,
  type ExportInfo,
} from './haggle.ts'
import { decodeReplies } from './replies.ts'
import { Session } from './session.ts'
import {
  attach,
  connectError,
  feedByCopy,
  lostInTls,
  secured,
  startTlsOver,
  tlsName,
  type Link,
  type NbdAddress,
  type NbdTls,
  type Receiver,
} from './transport.ts'

export type { NbdConnection } from './connection.ts'
export { isTransportLoss, NbdError, NBD_FAULTS, type NbdFault } from './faults.ts'
export type { ExportInfo } from './haggle.ts'
export type { NbdExtent } from './replies.ts'
export type { NbdAddress, NbdTls } from './transport.ts'

/** All times in milliseconds. */
export interface NbdOptions {
  /** Up to 4096 bytes of UTF-8; empty for the server's default export. */
  exportName: string
  /** Ends everything, at any time; its reason is what the promises reject with. */
  signal?: AbortSignal | undefined
  /** Without a byte for this long while requests are in flight, the connection is dead. Default 60 s. */
  stallMs?: number | undefined
  /** Connecting, TLS and options together, but not NBD_OPT_GO. Default 30 s. */
  handshakeTimeoutMs?: number | undefined
  /** NBD_OPT_GO alone: nbd-server runs its prerun meanwhile. Default 180 s. */
  goTimeoutMs?: number | undefined
  /** Whether to ask for structured replies; a server without them serves all the same. Default true. */
  structuredReplies?: boolean | undefined
  /** Contexts for `blockStatus`, e.g. `base:allocation`; asked for when structured replies were granted. */
  metaContexts?: readonly string[] | undefined
  /** Goes on over TLS, or not at all. */
  tls?: NbdTls | undefined
}

/** What NBD_OPT_INFO tells without opening the export. nbd-server answers a size of 0 here. */
export interface NbdDescription extends ExportInfo {
  readonly metaContexts: readonly string[]
}

const HANDSHAKE_MS = 30_000
const GO_MS = 180_000
const STALL_MS = 60_000

/** What the handshake does once it may ask; hands over its result and may go on receiving. */
type Haggle<T> = (session: Session, done: (result: T) => void) => Decoder<unknown>

/**
 * Opens an export over a socket of its own, which receives in place (over TLS: with one copy).
 * @throws NbdError (see `NBD_FAULTS`): CONNECT; OPTION_REFUSED with `reply` saying why; any handshake fault
 * @throws the signal's reason
 */
export function connectNbd(address: NbdAddress, options: NbdOptions): Promise<NbdConnection> {
  return start(address, options, go(options))
}

/** Opens an export over any duplex byte stream, with one copy. The stream belongs to the connection from now on. */
export function openNbd(stream: Duplex, options: NbdOptions): Promise<NbdConnection> {
  return start(stream, options, go(options))
}

/** The server's export names, NBD_OPT_LIST; at most 1000. @throws as connectNbd; OPTION_REFUSED by policy */
export function listExports(
  address: NbdAddress,
  options: Omit<NbdOptions, 'exportName'>,
): Promise<string[]> {
  return briefly(address, options, function* (session, done) {
    done(yield* list(session))
  })
}

/** One export's description, NBD_OPT_INFO and NBD_OPT_LIST_META_CONTEXT. @throws as connectNbd */
export function describeExport(address: NbdAddress, options: NbdOptions): Promise<NbdDescription> {
  return briefly(address, options, function* (session, done) {
    const structured = options.structuredReplies !== false && (yield* structuredReply(session))
    const metaContexts = structured ? yield* listMetaContexts(session, options.exportName) : []
    done({ ...(yield* info(session, NBD_OPT_INFO, options.exportName)), metaContexts })
  })
}

/** The whole of a connection that reads: options, NBD_OPT_GO, then replies for ever. */
function go(options: NbdOptions): Haggle<NbdConnection> {
  return function* (session, done) {
    const { exportName, metaContexts = [], goTimeoutMs = GO_MS } = options
    session.structured = options.structuredReplies !== false && (yield* structuredReply(session))
    const contexts =
      session.structured && metaContexts.length > 0
        ? yield* setMetaContexts(session, exportName, metaContexts)
        : new Map<string, number>()
    session.contextIds = new Set(contexts.values())
    session.deadline(goTimeoutMs, () => late('NBD_OPT_GO', goTimeoutMs))
    // A refused GO ends without NBD_OPT_ABORT, although the specification wants one: nbd-server runs the postrun
    // of a prerun that went well only when the client just drops.
    const described = yield* info(session, NBD_OPT_GO, exportName)
    session.deadline()
    session.state = 'ready'
    done(connection(session, described, contexts))
    yield* decodeReplies(session)
  }
}

/** A connection for one question: ends with NBD_OPT_ABORT, and nothing is left of it when the promise settles. */
async function briefly<T>(
  address: NbdAddress,
  options: Omit<NbdOptions, 'exportName'>,
  haggle: Haggle<T>,
): Promise<T> {
  const { session, result } = await start<{ session: Session; result: T }>(
    address,
    options,
    function* (session, done) {
      yield* haggle(session, result => done({ session, result }))
      session.deadline()
      abort(session)
      setImmediate(() => session.destroy())
    },
  )
  await session.closed
  return result
}

/** Connects, greets, secures when asked to, and haggles: one deadline over all of it. */
function start<T>(
  to: NbdAddress | Duplex,
  options: Omit<NbdOptions, 'exportName'>,
  haggle: Haggle<T>,
): Promise<T> {
  return new Promise((resolve, reject) => {
    const { signal, tls, stallMs = STALL_MS, handshakeTimeoutMs = HANDSHAKE_MS } = options
    const address = 'pipe' in to ? undefined : to
    const name = tls ? tlsName(tls, address) : ''
    const session = new Session({ signal, stallMs })
    void session.closed.then(reason => reject(reason ?? new NbdError('CLOSED', 'NBD: closed')))
    session.begin(tls ? secure(tls) : plain())
    let link: Link
    try {
      link = attach(to, session, tls === undefined)
    } catch (cause) {
      session.fail(address ? connectError(address, cause as Error) : (cause as Error))
      return
    }
    session.use(link.stream)
    session.deadline(handshakeTimeoutMs, () =>
      address && session.state === 'greeting' && link.isConnecting()
        ? connectError(address)
        : late('the handshake', handshakeTimeoutMs),
    )

    function* plain(): Decoder<void> {
      yield* greet(session)
      yield* haggle(session, resolve)
    }

    function* secure(tls: NbdTls): Decoder<void> {
      yield* greet(session)
      yield* startTls(session)
      link.stop()
      const encrypted = startTlsOver(link.stream, tls, name)
      session.use(encrypted)
      secured(encrypted, session, () => {
        feedByCopy(encrypted, sinceSecured(session))
        session.begin(haggle(session, resolve))
      })
    }
  })
}

/** In TLS 1.3 a client is done before the server has looked at its certificate: so the first byte is the server's consent. */
function sinceSecured(session: Session): Receiver {
  let heard = false
  return {
    slot: () => session.slot(),
    filled(length) {
      heard = true
      return session.filled(length)
    },
    ended: error => session.ended(heard ? error : lostInTls('after the TLS handshake', error)),
  }
}

function late(what: string, ms: number): NbdError {
  return new NbdError('HANDSHAKE_TIMEOUT', `NBD: ${what} took longer than ${ms} ms`)
}
