// What a standby shows and trusts over TLS: three PEM files, read for each connection, so that a renewed one is used.

import { X509Certificate } from 'node:crypto'
import { readFile, stat } from 'node:fs/promises'
import { Failure } from '../../shared/failures.ts'
import type { NbdTls } from '../../shared/nbd/client.ts'
import type { Source } from '../config/schema.ts'

/** A certificate that ends within so long is worth a word. */
const SOON_MS = 30 * 86_400_000
/** Files that were warned of: a pull connects many times. */
const warned = new Set<string>()

/** What our own certificate is warned of. @param ends when it is over */
type Warn = (facts: { readonly cert: string; readonly ends: Date }, message: string) => void

/**
 * undefined for other transports.
 * @throws Failure USAGE for a file that cannot be read, or a key that others can read
 */
export async function tlsOf(
  { transport, tls }: Source,
  warn: Warn = warnInLog,
): Promise<NbdTls | undefined> {
  if (transport !== 'tls' || tls === undefined) return undefined
  await refuseOpenKey(tls.key)
  const cert = await read('cert', tls.cert)
  warnOfEnd(tls.cert, cert, warn)
  return {
    ca: await read('ca', tls.ca),
    cert,
    key: await read('key', tls.key),
    ...(tls.servername === undefined ? {} : { servername: tls.servername }),
  }
}

/** Once for each file; one that cannot be read as a certificate fails when it is used. */
function warnOfEnd(file: string, pem: string, warn: Warn): void {
  if (warned.has(file)) return
  let ends: Date
  try {
    ends = new Date(new X509Certificate(pem).validTo)
  } catch {
    return
  }
  const left = ends.getTime() - Date.now()
  if (left > SOON_MS) return
  warned.add(file)
  const when = left < 0 ? 'has expired' : `ends on ${ends.toISOString().slice(0, 10)}`
  warn(
    { cert: file, ends },
    `the certificate of this standby ${when}; on the source: clone-server tls issue NAME`,
  )
}

/** No log comes this far down, and a pull must not depend on a word of warning: so it opens one of its own. */
function warnInLog(...words: Parameters<Warn>): void {
  void import('../../shared/log.ts').then(({ createLog }) =>
    createLog('clone', 'warn').warn(...words),
  )
}

async function refuseOpenKey(file: string): Promise<void> {
  const { mode } = await stat(file).catch((error: unknown) => unreadable('key', file, error))
  if ((mode & 0o077) === 0) return
  const shown = (mode & 0o777).toString(8).padStart(4, '0')
  throw new Failure('USAGE', `tls.key: ${file} may be read by others (mode ${shown})`, {
    remedy: `chmod 600 ${file}`,
  })
}

async function read(key: string, file: string): Promise<string> {
  return readFile(file, 'utf8').catch((error: unknown) => unreadable(key, file, error))
}

function unreadable(key: string, file: string, cause: unknown): never {
  const { code } = cause as NodeJS.ErrnoException
  const reason = code === 'ENOENT' ? 'no such file' : String(code)
  throw new Failure('USAGE', `tls.${key}: cannot read ${file}: ${reason}`, {
    cause,
    remedy: 'on the source: clone-server tls issue NAME; then move its folder here',
  })
}
