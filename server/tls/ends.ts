// Certificates end, and lists of revoked ones, and nothing is pulled over TLS any more when they have: said in the log while there is time.

import { readFile } from 'node:fs/promises'
import type { Log } from '../../shared/log.ts'
import { checkTlsFiles } from './identity.ts'
import type { TlsFiles } from './paths.ts'

const DAY_MS = 86_400_000
/** What ends within so long is worth a word. */
export const SOON_MS = 30 * DAY_MS

/**
 * Looks now and then once a day.
 * @returns stops it. @throws Failure USAGE when the files cannot be used
 */
export async function watchEnds(files: TlsFiles, log: Log): Promise<() => void> {
  const look = async (): Promise<void> => {
    const { cert, ca } = await checkTlsFiles(files)
    const list = await endOfList(files.crl)
    for (const [what, file, ends] of [
      ['a certificate', files.cert, cert],
      ['a certificate', files.ca, ca],
      // A list as old as its authority, as ours is, is renewed with it.
      ...(list && list < ca
        ? [['the list of revoked certificates', files.crl, list] as const]
        : []),
    ] as const) {
      const left = ends.getTime() - Date.now()
      if (left < 0) log.warn({ file, ends }, `${what} of listen.tls has expired`)
      else if (left < SOON_MS)
        log.warn({ file, ends }, `${what} of listen.tls ends soon: see clone-server doctor`)
    }
  }
  await look()
  const timer = setInterval(() => {
    look().catch((error: unknown) => log.error({ error }, 'certificates of listen.tls'))
  }, DAY_MS).unref()
  return () => clearInterval(timer)
}

async function endOfList(file: string | undefined): Promise<Date | undefined> {
  if (file === undefined) return undefined
  // Loaded by those who have a list: its package is large.
  const { endOfLists } = await import('./revocations.ts')
  return endOfLists(await readFile(file, 'utf8'))
}
