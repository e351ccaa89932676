// TLS over a client's socket, and who the client is by its certificate.

import { constants, X509Certificate } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import type { Socket } from 'node:net'
import { createSecureContext, createServer, type TLSSocket } from 'node:tls'
import { whyNotBelieved } from '../../shared/certificate-faults.ts'
import { Failure } from '../../shared/failures.ts'
import { isName, NAME_RULE } from '../../shared/names.ts'
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

/** @returns when the server's certificate expires. @throws Failure USAGE when the files are not there or do not fit */
export async function checkTlsFiles(files: TlsFiles): Promise<Date> {
  const pem = await readTlsFiles(files)
  try {
    createSecureContext(pem)
    return new Date(new X509Certificate(pem.cert).validTo)
  } catch (cause) {
    throw unusable(cause as Error)
  }
}

/**
 * The server's side of TLS 1.2 or 1.3. The handshake is ended also with a client that will be refused: `clientOf` says
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

/**
 * The client's name, proven by its certificate.
 * @throws Refused with the reason; its `client` is what the certificate says, proven or not
 */
export function clientOf(socket: TLSSocket): string {
  const { subject, valid_to, valid_from } = socket.getPeerCertificate()
  // One that shows none has no fields here, whatever the types say.
  const name: unknown = (subject as { CN?: unknown } | undefined)?.CN
  const client = typeof name === 'string' && isName(name) ? name : undefined
  if ((subject as unknown) === undefined)
    throw new Refused(undefined, 'the client shows no certificate, and the source wants one')
  if (!socket.authorized) {
    const code = String(socket.authorizationError)
    const why = whyNotBelieved(code)
    const when = code === 'CERT_HAS_EXPIRED' ? ` (${valid_to})` : ''
    const from = code === 'CERT_NOT_YET_VALID' ? ` (${valid_from})` : ''
    throw new Refused(client, `the certificate of ${client ?? 'the client'} ${why}${when}${from}`)
  }
  if (client === undefined)
    throw new Refused(
      undefined,
      `the certificate's common name is no name of a client: ${NAME_RULE}`,
    )
  return client
}

/** Why a client is not let in. */
export class Refused extends Failure {
  readonly client: string | undefined

  constructor(client: string | undefined, reason: string, cause?: unknown) {
    super('SOURCE_REFUSED', reason, { cause })
    this.client = client
  }
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
