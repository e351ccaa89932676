// Where the source keeps its files, from source.yaml and from where that lies.

import path from 'node:path'
import { tlsFolder, type TlsFiles } from '../tls/paths.ts'
import type { SourceConfig } from './schema.ts'

export interface Paths {
  readonly serveSocket: string
  /** For gates that do not run as root; there only with `listen.gate`. */
  readonly gateSocket: string
  readonly serveLock: string
  readonly nbdSocket: string
  readonly connections: string
  readonly exports: string
  readonly journals: string
  /** Who acknowledged which recovery point. */
  readonly tracking: string
  readonly hostId: string
  /** One file of rights per client, beside the configuration. */
  readonly clients: string
  /** Of the TLS listener, if there is one. */
  readonly tls: TlsFiles | undefined
}

/** Every path the source uses, from the config's directories and its own. @param file where the config was read */
export function sourcePaths(config: SourceConfig, file: string): Paths {
  return {
    serveSocket: `${config.runDir}/serve.sock`,
    gateSocket: `${config.runDir}/gate/gate.sock`,
    serveLock: `${config.stateDir}/serve.lock`,
    nbdSocket: config.listen.unix ?? `${config.runDir}/nbd.sock`,
    connections: `${config.runDir}/connections`,
    exports: `${config.runDir}/exports`,
    journals: `${config.stateDir}/sessions`,
    tracking: `${config.stateDir}/tracking`,
    hostId: `${config.stateDir}/host-id`,
    clients: path.join(path.dirname(path.resolve(file)), 'clients'),
    tls: tlsFiles(config, file),
  }
}

/** The PEM files of the TLS listener: those that are named, or those that `tls init` makes beside the file. */
function tlsFiles(config: SourceConfig, configFile: string): TlsFiles | undefined {
  const { tls } = config.listen
  if (!tls) return undefined
  const { ca, cert, key, crl } = tls
  if (ca !== undefined && cert !== undefined && key !== undefined) return { ca, cert, key, crl }
  const made = tlsFolder(configFile)
  return { ca: made.caCert, cert: made.serverCert, key: made.serverKey, crl: made.crl }
}
