// X.509 as this source makes it: an authority of its own, certificates for the server and for clients, and the list of those
// that are revoked. PEM in and out; files are folder.ts's.

// The package below needs it before it is loaded.
import 'reflect-metadata'
import { randomBytes, webcrypto } from 'node:crypto'
import { isIP } from 'node:net'
import {
  AuthorityKeyIdentifierExtension,
  BasicConstraintsExtension,
  ExtendedKeyUsage,
  ExtendedKeyUsageExtension,
  KeyUsageFlags,
  KeyUsagesExtension,
  PemConverter,
  SubjectAlternativeNameExtension,
  SubjectKeyIdentifierExtension,
  X509Certificate,
  X509CertificateGenerator,
  X509CrlGenerator,
} from '@peculiar/x509'
import { Failure } from '../../shared/failures.ts'

type Keys = webcrypto.CryptoKeyPair
type Key = webcrypto.CryptoKey

/** Certificate and key, as PEM. */
export interface Pair {
  readonly cert: string
  readonly key: string
}

/** What a certificate is for: a server that has these names and addresses, or the client of this name. */
export type Subject =
  | { readonly kind: 'server'; readonly hosts: readonly string[] }
  | { readonly kind: 'client'; readonly name: string }

export interface Issued extends Pair {
  /** Hexadecimal. */
  readonly serial: string
  readonly notBefore: Date
  readonly notAfter: Date
}

export interface Authority {
  readonly certificate: X509Certificate
  readonly key: Key
}

const ALGORITHM = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const
const DAY_MS = 86_400_000
/** Clocks of two hosts differ; a certificate that was made now must not be one of tomorrow elsewhere. */
const BACKDATED_MS = DAY_MS

/** @param name shown as the issuer. @param days from now. */
export async function makeAuthority(name: string, days: number): Promise<Pair> {
  const keys = await makeKeys()
  const certificate = await X509CertificateGenerator.createSelfSigned({
    serialNumber: newSerial(),
    name: [{ CN: [name] }],
    ...validity(days),
    signingAlgorithm: ALGORITHM,
    keys,
    extensions: [
      new BasicConstraintsExtension(true, 0, true),
      new KeyUsagesExtension(KeyUsageFlags.keyCertSign | KeyUsageFlags.cRLSign, true),
      await SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  })
  return { cert: certificateText(certificate), key: await keyText(keys.privateKey) }
}

/** @throws Failure USAGE when they are no certificate and key of ours */
export async function readAuthority({ cert, key }: Pair): Promise<Authority> {
  try {
    const [raw] = PemConverter.decode(key)
    if (!raw) throw new Error('no PEM')
    return {
      certificate: new X509Certificate(cert),
      key: await webcrypto.subtle.importKey('pkcs8', raw, ALGORITHM, false, ['sign']),
    }
  } catch (cause) {
    throw new Failure('USAGE', 'the certificate authority cannot be read: not made by tls init?', {
      cause,
    })
  }
}

/** When a certificate that is issued now would end, and whether that is the authority's end. @param days asked for */
export function endOf({ certificate }: Authority, days: number): { end: Date; isCapped: boolean } {
  const { notAfter } = validity(days, certificate.notAfter)
  return { end: notAfter, isCapped: notAfter.getTime() === certificate.notAfter.getTime() }
}

/** Key and certificate, never valid for longer than the authority. @param days from now */
export async function issue(authority: Authority, subject: Subject, days: number): Promise<Issued> {
  const { certificate: issuer, key } = authority
  const keys = await makeKeys()
  const serial = newSerial()
  const { notBefore, notAfter } = validity(days, issuer.notAfter)
  const certificate = await X509CertificateGenerator.create({
    serialNumber: serial,
    issuer: issuer.subjectName,
    subject: [{ CN: [subject.kind === 'client' ? subject.name : (subject.hosts[0] ?? '')] }],
    notBefore,
    notAfter,
    signingAlgorithm: ALGORITHM,
    signingKey: key,
    publicKey: keys.publicKey,
    extensions: [
      new BasicConstraintsExtension(false, undefined, true),
      new KeyUsagesExtension(KeyUsageFlags.digitalSignature, true),
      new ExtendedKeyUsageExtension([
        subject.kind === 'client' ? ExtendedKeyUsage.clientAuth : ExtendedKeyUsage.serverAuth,
      ]),
      await SubjectKeyIdentifierExtension.create(keys.publicKey),
      await AuthorityKeyIdentifierExtension.create(issuer.publicKey),
      ...(subject.kind === 'server' ? [namesOf(subject.hosts)] : []),
    ],
  })
  return {
    cert: certificateText(certificate),
    key: await keyText(keys.privateKey),
    serial,
    notBefore,
    notAfter,
  }
}

/** The list of revoked certificates; good for as long as the authority is. */
export async function makeCrl(
  { certificate, key }: Authority,
  revoked: readonly { readonly serial: string; readonly at: Date }[],
): Promise<string> {
  const crl = await X509CrlGenerator.create({
    issuer: certificate.subjectName,
    thisUpdate: new Date(Date.now() - BACKDATED_MS),
    nextUpdate: certificate.notAfter,
    entries: revoked.map(({ serial, at }) => ({ serialNumber: serial, revocationDate: at })),
    signingAlgorithm: ALGORITHM,
    signingKey: key,
    extensions: [await AuthorityKeyIdentifierExtension.create(certificate.publicKey)],
  })
  // The package labels it CRL, which OpenSSL does not know.
  return `${PemConverter.encode(crl.rawData, 'X509 CRL')}\n`
}

function namesOf(hosts: readonly string[]): SubjectAlternativeNameExtension {
  return new SubjectAlternativeNameExtension(
    hosts.map(host => ({
      type: isIP(host) === 0 ? ('dns' as const) : ('ip' as const),
      value: host,
    })),
  )
}

function makeKeys(): Promise<Keys> {
  return webcrypto.subtle.generateKey(ALGORITHM, true, ['sign', 'verify'])
}

/** 127 random bits: positive, and never the same twice. */
function newSerial(): string {
  const bytes = randomBytes(16)
  bytes[0] = ((bytes[0] ?? 0) & 0x3f) | 0x40
  return bytes.toString('hex')
}

function validity(days: number, atMost?: Date): { notBefore: Date; notAfter: Date } {
  const now = Math.floor(Date.now() / 1000) * 1000
  const end = Math.min(now + days * DAY_MS, atMost?.getTime() ?? Infinity)
  return { notBefore: new Date(now - BACKDATED_MS), notAfter: new Date(end) }
}

function certificateText(certificate: X509Certificate): string {
  return `${certificate.toString('pem')}\n`
}

async function keyText(key: Key): Promise<string> {
  return `${PemConverter.encode(await webcrypto.subtle.exportKey('pkcs8', key), 'PRIVATE KEY')}\n`
}
