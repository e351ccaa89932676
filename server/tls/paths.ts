// Where certificates and keys are. File names are those that libnbd, nbdkit and QEMU look for.

import path from 'node:path'

/** Paths of PEM files; they are read for each connection. */
export interface TlsFiles {
  readonly ca: string
  readonly cert: string
  readonly key: string
  /** None: certificates are not looked up in a list of revoked ones. */
  readonly crl?: string | undefined
}

export interface TlsFolder {
  readonly folder: string
  readonly caCert: string
  readonly caKey: string
  readonly serverCert: string
  readonly serverKey: string
  readonly crl: string
  readonly index: string
}

/** Where `tls` of a configuration file is. */
export function tlsFolder(configFile: string): TlsFolder {
  const folder = path.join(path.dirname(path.resolve(configFile)), 'tls')
  const inside = (name: string): string => path.join(folder, name)
  return {
    folder,
    caCert: inside('ca-cert.pem'),
    caKey: inside('ca-key.pem'),
    serverCert: inside('server-cert.pem'),
    serverKey: inside('server-key.pem'),
    crl: inside('ca-crl.pem'),
    index: inside('issued.json'),
  }
}
