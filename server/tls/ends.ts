// Certificates end, and nothing is pulled over TLS any more when they have: said in the log while there is time.

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
    for (const [file, ends] of [
      [files.cert, cert],
      [files.ca, ca],
    ] as const) {
      const left = ends.getTime() - Date.now()
      if (left < 0) log.warn({ file, ends }, 'a certificate of listen.tls has expired')
      else if (left < SOON_MS)
        log.warn({ file, ends }, 'a certificate of listen.tls ends soon: see clone-server doctor')
    }
  }
  await look()
  const timer = setInterval(() => {
    look().catch((error: unknown) => log.error({ error }, 'certificates of listen.tls'))
  }, DAY_MS).unref()
  return () => clearInterval(timer)
}
