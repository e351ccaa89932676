// Sockets and other streams: how their bytes reach a decoder. Two feeders: in place (the kernel writes into the
// decoder's slot) for sockets we open ourselves, and one copy for TLS, SSH channels and child processes.

import { connect as connectSocket, isIP, type OnReadOpts } from 'node:net'
import type { Duplex } from 'node:stream'
import { checkServerIdentity, connect as connectTls, type TLSSocket } from 'node:tls'
import { whyNotBelieved } from '../certificate-faults.ts'
import { Failure } from '../failures.ts'
import { NbdError } from './faults.ts'

/** A Unix socket or TCP. */
export type NbdAddress = { path: string } | { host: string; port: number }

/** PEM texts. The server must prove `servername`; by default that is the host of the address. */
export interface NbdTls {
  /** Authorities to trust instead of the system's. */
  ca?: string
  /** Client certificate and key, for servers that ask for one. */
  cert?: string
  key?: string
  servername?: string
}

/** Where bytes go. Never throws: what is wrong with the bytes is the receiver's to act on. */
export interface Receiver {
  /** Where the next bytes go; never empty, and the same place until `filled` is called. */
  slot(): Uint8Array
  /** The first `length` bytes of the slot are in. Returns whether more are wanted. */
  filled(length: number): boolean
  /** No byte will follow. */
  ended(error?: Error): void
}

/** TCP's own check for a peer that vanished, after this idle time. */
const KEEP_ALIVE_MS = 15_000

export function describeAddress(address: NbdAddress): string {
  return 'path' in address ? `unix:${address.path}` : `${address.host}:${address.port}`
}

/** A stream whose bytes reach a receiver. */
export interface Link {
  readonly stream: Duplex
  isConnecting(): boolean
  /** Takes the stream from the receiver and leaves it paused; only for a link that is fed by copy. */
  stop(): void
}

/**
 * Opens the address, or takes the stream. Failure to connect reaches `receiver.ended` as CONNECT.
 * @param inPlace whether a socket opened here may receive in place; what TLS takes over may not
 */
export function attach(to: NbdAddress | Duplex, receiver: Receiver, inPlace: boolean): Link {
  if ('pipe' in to) {
    const stop = feedByCopy(to, receiver)
    if (to.destroyed || to.readableEnded) receiver.ended()
    return { stream: to, isConnecting: () => false, stop }
  }
  const socket = connectSocket({
    ...to,
    noDelay: true,
    keepAlive: true,
    keepAliveInitialDelay: KEEP_ALIVE_MS,
    ...(inPlace ? { onread: slots(receiver) } : {}),
  })
  const explain = (error: Error): Error => connectError(to, error)
  const stop = inPlace ? watch(socket, receiver, explain) : feedByCopy(socket, receiver, explain)
  return { stream: socket, isConnecting: () => socket.connecting, stop }
}

/** The kernel writes into any Uint8Array, shared memory included. */
function slots(receiver: Receiver): OnReadOpts {
  return {
    buffer: () => receiver.slot(),
    callback: length => receiver.filled(length),
  }
}

export function connectError(address: NbdAddress, cause?: Error): NbdError {
  const why = cause ? cause.message || cause.name : 'no answer in time'
  return new NbdError('CONNECT', `NBD: cannot connect to ${describeAddress(address)}: ${why}`, {
    cause,
  })
}

/**
 * Hands every byte of `stream` to `receiver`.
 * @param beforeConnect how an error is told while a socket is still connecting
 * @returns a function that stops it and leaves the stream paused
 */
export function feedByCopy(
  stream: Duplex,
  receiver: Receiver,
  beforeConnect?: (error: Error) => Error,
): () => void {
  const onData = (bytes: Uint8Array): void => {
    for (let at = 0, more = true; more && at < bytes.length;) {
      const slot = receiver.slot()
      const length = Math.min(slot.length, bytes.length - at)
      slot.set(bytes.subarray(at, at + length))
      at += length
      more = receiver.filled(length)
    }
  }
  const unwatch = watch(stream, receiver, beforeConnect)
  stream.on('data', onData)
  return () => {
    unwatch()
    stream.off('data', onData).pause()
  }
}

/** Tells `receiver` how the stream ended. The error listener stays: a destroyed stream may still emit one. */
function watch(
  stream: Duplex,
  receiver: Receiver,
  beforeConnect?: (error: Error) => Error,
): () => void {
  let connecting = beforeConnect !== undefined
  let watching = true
  const onConnect = (): void => {
    connecting = false
  }
  const onError = (error: Error): void => {
    if (watching) receiver.ended(connecting && beforeConnect ? beforeConnect(error) : error)
  }
  const onEnd = (): void => receiver.ended()
  stream.on('error', onError)
  stream.once('connect', onConnect).once('end', onEnd).once('close', onEnd)
  return () => {
    watching = false
    stream.off('connect', onConnect).off('end', onEnd).off('close', onEnd)
  }
}

/**
 * The name that the server's certificate must show.
 * @throws Failure USAGE when neither the address nor the caller names one
 */
export function tlsName(tls: NbdTls, address?: NbdAddress): string {
  const name = tls.servername ?? (address && 'host' in address ? address.host : undefined)
  if (name === undefined)
    throw new Failure(
      'USAGE',
      'TLS over a Unix socket or a stream needs tls.servername: nothing else names the server',
    )
  return name
}

/** Starts TLS 1.2 or later over `stream`. The caller calls `secured` next. @throws TLS for unusable certificates */
export function startTlsOver(stream: Duplex, tls: NbdTls, name: string): TLSSocket {
  try {
    return connectTls({
      socket: stream,
      ...(tls.ca === undefined ? {} : { ca: tls.ca }),
      ...(tls.cert === undefined ? {} : { cert: tls.cert }),
      ...(tls.key === undefined ? {} : { key: tls.key }),
      ...(isIP(name) === 0 ? { servername: name } : {}),
      minVersion: 'TLSv1.2',
      rejectUnauthorized: true,
      checkServerIdentity: (_host, certificate) => checkServerIdentity(name, certificate),
    })
  } catch (cause) {
    throw new NbdError('TLS', `NBD: TLS cannot start: ${(cause as Error).message}`, { cause })
  }
}

/** Calls back once TLS stands and the certificate is proven. Every failure reaches `receiver.ended`: UNTRUSTED, TLS, LOST. */
export function secured(socket: TLSSocket, receiver: Receiver, ready: () => void): void {
  let settled = false
  const fail = (error?: Error): void => {
    if (settled) return
    settled = true
    receiver.ended(tlsError(socket, error))
  }
  const onEnd = (): void => fail()
  socket.on('error', fail).once('end', onEnd).once('close', onEnd)
  socket.once('secureConnect', () => {
    if (settled) return
    settled = true
    socket.off('end', onEnd).off('close', onEnd)
    ready()
  })
}

/** A server that does not like the client's certificate may say so, or just go. */
const MAY_HAVE_REFUSED = "it may have refused this client's certificate, which its log would say"

function tlsError(socket: TLSSocket, cause?: Error & { readonly code?: string }): NbdError {
  const distrust: unknown = socket.authorizationError
  if (cause && (typeof distrust === 'string' || distrust instanceof Error)) {
    const why = whyNotBelieved(cause.code ?? '')
    return new NbdError('UNTRUSTED', `NBD: the server's certificate ${why}: ${cause.message}`, {
      cause,
      remedy: 'if the server is the right one: tls.ca and tls.servername, the clocks of both hosts',
    })
  }
  if (!cause || cause.code === 'ECONNRESET' || cause.code === 'EPIPE')
    return lostInTls('during the TLS handshake', cause)
  const hint = cause.message.includes('alert') ? `; ${MAY_HAVE_REFUSED}` : ''
  return new NbdError('TLS', `NBD: TLS failed: ${cause.message}${hint}`, { cause })
}

/** @param when in the life of the connection */
export function lostInTls(when: string, cause?: Error): NbdError {
  const message = `NBD: the server ended the connection ${when}: ${MAY_HAVE_REFUSED}`
  return new NbdError('LOST', message, { cause })
}
