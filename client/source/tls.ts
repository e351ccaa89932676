// What a standby shows and trusts over TLS: three PEM files, read for each connection, so that a renewed one is used.

import { readFile, stat } from 'node:fs/promises'
import { Failure } from '../../shared/failures.ts'
import type { NbdTls } from '../../shared/nbd/client.ts'
import type { Source } from '../config/schema.ts'

/**
 * undefined for other transports.
 * @throws Failure USAGE for a file that cannot be read, or a key that others can read
 */
export async function tlsOf({ transport, tls }: Source): Promise<NbdTls | undefined> {
  if (transport !== 'tls' || tls === undefined) return undefined
  await refuseOpenKey(tls.key)
  return {
    ca: await read('ca', tls.ca),
    cert: await read('cert', tls.cert),
    key: await read('key', tls.key),
    ...(tls.servername === undefined ? {} : { servername: tls.servername }),
  }
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
