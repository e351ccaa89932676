// What lists of revoked certificates say, beyond what Node tells of them. It is loaded only by those who ask, because its
// package is large.

// The package below needs it before it is loaded.
import 'reflect-metadata'
import { PemConverter, X509Certificate, X509Crl } from '@peculiar/x509'

/** When the first of the lists in a file ends; undefined when none does. After that OpenSSL believes no certificate. */
export function endOfLists(pem: string): Date | undefined {
  const ends = listsIn(pem).flatMap(({ nextUpdate }) => nextUpdate?.getTime() ?? [])
  return ends.length === 0 ? undefined : new Date(Math.min(...ends))
}

/** @param certificate as DER */
export function isRevoked(pem: string, certificate: Buffer): boolean {
  const shown = new X509Certificate(new Uint8Array(certificate))
  return listsIn(pem).some(list => list.issuer === shown.issuer && list.findRevoked(shown) !== null)
}

function listsIn(pem: string): X509Crl[] {
  return PemConverter.decode(pem).map(raw => new X509Crl(raw))
}
