// One TLS connection, in a process of its own: NBD's options up to STARTTLS, the handshake, who it is, and from there on
// bytes between the client and an nbd-server that serve starts for it. serve decides what it may see.

import type { Socket } from 'node:net'
import type { TLSSocket } from 'node:tls'
import { Cleanup } from '../../shared/cleanup.ts'
import { Failure, toFailure } from '../../shared/failures.ts'
import { NBD_FLAG_C_NO_ZEROES, NBD_FLAG_NO_ZEROES } from '../../shared/nbd/constants.ts'
import { decodeGreeting } from '../../shared/nbd/decode.ts'
import { encodeClientFlags } from '../../shared/nbd/encode.ts'
import { openRelay, relayNbd, type Relay } from '../gate/relay-nbd.ts'
import { drive } from './drive.ts'
import { identify, readTlsFiles, secure } from './identity.ts'
import { untilGone, untilStartTls } from './options.ts'
import type { TlsFiles } from './paths.ts'
import type { TlsJob, TlsWord } from './words.ts'

/** serve ends sessions that stand still; this ends what is left of them. */
const STALL_MS = 60_000
const LOOK_MS = 5_000

/**
 * Serves one client to its end. serve ends this process when the client has not been admitted in time.
 * @param socket nothing of it was read yet. @param tell to serve
 * @throws Failure when the client was not admitted, after it was told why
 */
export async function relayTls(
  socket: Socket,
  job: TlsJob,
  tell: (word: TlsWord) => void,
): Promise<void> {
  await using cleanup = new Cleanup()
  cleanup.defer(() => socket.destroy())
  socket.on('error', () => undefined).setNoDelay(true)

  const pem = await readTlsFiles(job.files)
  const flags = await drive(
    socket,
    untilStartTls(bytes => socket.write(bytes)),
    'the client',
  )
  const secured = await secure(socket, pem)
  cleanup.defer(() => secured.destroy())
  secured.on('error', () => undefined)

  let relay: Relay
  try {
    relay = await admit(secured, flags, job, pem.crl, tell)
  } catch (error) {
    const { message, remedy } = toFailure(error)
    await sayWhy(secured, remedy === undefined ? message : `${message}; ${remedy}`)
    return
  }
  cleanup.defer(() => relay[Symbol.asyncDispose]())
  cleanup.defer(watchStall(secured))
  await relayNbd(relay, secured, secured)
  await ended(secured)
}

/**
 * Who it is, whether serve lets it in, and an nbd-server that is as far as the client is.
 * @param crl the list that it was held against. @throws Failure
 */
async function admit(
  secured: TLSSocket,
  flags: number,
  { peer, serveSocket, files }: TlsJob,
  crl: string | undefined,
  tell: (word: TlsWord) => void,
): Promise<Relay> {
  const identity = identify(secured)
  if (identity.refused !== undefined) {
    tell({ kind: 'refused', client: identity.client, reason: identity.refused })
    throw new Failure('SOURCE_REFUSED', identity.refused)
  }
  const { client } = identity
  // What serve refuses, it logs itself.
  const relay = await openRelay(serveSocket, { client, peer })
  try {
    await refuseRevokedSince(secured, client, files, crl)
    await takeOver(relay, flags, client)
  } catch (error) {
    await relay[Symbol.asyncDispose]()
    tell({ kind: 'refused', client, reason: toFailure(error).message })
    throw error
  }
  tell({ kind: 'admitted', client })
  return relay
}

/**
 * A client may take its time over the handshake. If it was revoked meanwhile, serve ended all that it had before this relay
 * was there; from here on serve would end this one too.
 */
async function refuseRevokedSince(
  secured: TLSSocket,
  client: string,
  files: TlsFiles,
  before: string | undefined,
): Promise<void> {
  const { crl } = await readTlsFiles(files)
  if (crl === undefined || crl === before) return
  const { isRevoked } = await import('./revocations.ts')
  if (isRevoked(crl, secured.getPeerCertificate().raw))
    throw new Failure('SOURCE_REFUSED', `the certificate of ${client} is revoked`)
}

/**
 * Inside TLS the options begin anew, and nothing is greeted a second time: nbd-server's greeting ends here, and is answered
 * with what the client answered to ours.
 */
async function takeOver({ socket }: Relay, flags: number, client: string): Promise<void> {
  const offered = await drive(socket, decodeGreeting(), 'nbd-server').catch((cause: unknown) => {
    throw new Failure(
      'SOURCE_REFUSED',
      `no nbd-server serves ${client}: nothing that it may have is exported, or there are too many connections`,
      { cause },
    )
  })
  if ((flags & NBD_FLAG_C_NO_ZEROES) !== 0 && (offered & NBD_FLAG_NO_ZEROES) === 0)
    throw new Failure(
      'INTERNAL',
      'this nbd-server is too old: it does not offer NBD_FLAG_NO_ZEROES',
    )
  socket.write(encodeClientFlags(flags))
}

/** The reason goes to the client alone, encrypted, in answer to whatever it asks. */
async function sayWhy(secured: TLSSocket, reason: string): Promise<void> {
  await drive(
    secured,
    untilGone(bytes => secured.write(bytes), reason),
    'the client',
  ).catch(() => undefined)
  await ended(secured)
}

/** Everything is sent, and the end after it; or the client is gone. */
async function ended(secured: TLSSocket): Promise<void> {
  // A stream that was destroyed calls nobody back.
  if (secured.destroyed) return
  await new Promise<void>(resolve => {
    secured.once('close', resolve).end(resolve)
  })
}

/** Ends a client that is there, but takes nothing of what waits for it. @returns stops watching */
function watchStall(secured: TLSSocket): () => void {
  let looks = 0
  secured.on('drain', () => (looks = 0))
  const timer = setInterval(() => {
    looks = secured.writableLength > 0 ? looks + 1 : 0
    if (looks * LOOK_MS > STALL_MS) secured.destroy()
  }, LOOK_MS)
  return () => clearInterval(timer)
}
