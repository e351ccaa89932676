// TLS over a client's socket, and who the client is by its certificate.

import { constants, X509Certificate } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import type { Socket } from 'node:net'
import { createSecureContext, createServer, type PeerCertificate, type TLSSocket } from 'node:tls'
import { whyNotBelieved } from '../../shared/certificate-faults.ts'
import { Failure } from '../../shared/failures.ts'
import { isName, NAME_RULE } from '../../shared/names.ts'
import { isReserved } from '../clients/rights.ts'
import type { TlsFiles } from './paths.ts'

interface Pem {
  readonly ca: string
  readonly cert: string
  readonly key: string
  readonly crl?: string
}

/** The PEM texts of now. @throws Failure USAGE naming the file */
export async function readTlsFiles(files: TlsFiles): Promise<Pem> {
  const { ca, cert, key, crl } = files
  return {
    ca: await read(ca),
    cert: await read(cert),
    key: await read(key),
    ...(crl === undefined ? {} : { crl: await read(crl) }),
  }
}

/**
 * @returns when the server's certificate expires, and its authority's
 * @throws Failure USAGE when the files are not there or do not fit
 */
export async function checkTlsFiles(files: TlsFiles): Promise<{ cert: Date; ca: Date }> {
  const pem = await readTlsFiles(files)
  try {
    createSecureContext(pem)
    // Of several authorities some may have been renewed, so the last to end counts.
    const ca = (pem.ca.match(CERTIFICATE) ?? [pem.ca]).map(endOf)
    return { cert: new Date(endOf(pem.cert)), ca: new Date(Math.max(...ca)) }
  } catch (cause) {
    throw unusable(cause as Error)
  }
}

const CERTIFICATE = /-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----/g

function endOf(pem: string): number {
  return Date.parse(new X509Certificate(pem).validTo)
}

/**
 * The server's side of TLS 1.2 or 1.3. The handshake is ended also with a client that will be refused: `identify` says
 * that, and only then can the client be told why.
 * @throws Failure SOURCE_REFUSED when the client breaks it off, USAGE for unusable certificates
 */
export function secure(socket: Socket, pem: Pem): Promise<TLSSocket> {
  return new Promise((resolve, reject) => {
    try {
      const server = createServer({
        ...pem,
        requestCert: true,
        rejectUnauthorized: false,
        minVersion: 'TLSv1.2',
        // Each connection shows its certificate, and shows it once.
        secureOptions: constants.SSL_OP_NO_TICKET | constants.SSL_OP_NO_RENEGOTIATION,
      })
      server.once('secureConnection', resolve)
      server.once('tlsClientError', cause => reject(brokenOff(cause)))
      server.emit('connection', socket)
    } catch (cause) {
      reject(unusable(cause as Error))
    }
  })
}

/** Who a client is; or why it is refused, with the name that its certificate bears, proven or not. */
export type Identity =
  | { readonly client: string; readonly refused?: undefined }
  | { readonly client: string | undefined; readonly refused: string }

export function identify(socket: TLSSocket): Identity {
  // A client that shows none has no fields here, whatever the types say.
  const shown: Partial<PeerCertificate> = socket.getPeerCertificate()
  const name: unknown = shown.subject?.CN
  const client = typeof name === 'string' && isName(name) ? name : undefined
  if (shown.subject === undefined)
    return { client, refused: 'the client shows no certificate, and this source wants one' }
  const whose = `the certificate of ${client ?? 'the client'}`
  if (!socket.authorized) {
    const code = String(socket.authorizationError)
    const dates = `valid from ${shown.valid_from ?? '?'} to ${shown.valid_to ?? '?'}`
    return { client, refused: `${whose} ${whyNotBelieved(code)} (${dates})` }
  }
  if (client === undefined)
    return { client, refused: `the common name in the certificate is no client's: ${NAME_RULE}` }
  if (isReserved(client))
    return { client, refused: `${whose} bears a name that no client may have` }
  return { client }
}

function brokenOff(cause: Error & { readonly code?: string; readonly reason?: string }): Failure {
  const why = cause.reason ?? cause.code ?? cause.message
  return new Failure('SOURCE_REFUSED', `the client broke off the TLS handshake: ${why}`, { cause })
}

function unusable(cause: Error): Failure {
  return new Failure('USAGE', `the certificates of listen.tls cannot be used: ${cause.message}`, {
    cause,
  })
}

async function read(file: string): Promise<string> {
  return readFile(file, 'utf8').catch((error: unknown) => {
    const { code } = error as NodeJS.ErrnoException
    const reason = code === 'ENOENT' ? 'no such file' : String(code)
    throw new Failure('USAGE', `listen.tls: cannot read ${file}: ${reason}`, {
      cause: error,
      remedy: 'clone-server tls init, or name your own: listen.tls.ca, cert and key',
    })
  })
}
