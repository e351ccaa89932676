// Whether the TLS listener's certificates are there, fit together, and are good for a while.

import { toFailure } from '../../shared/failures.ts'
import { checkTlsFiles } from '../tls/identity.ts'
import type { TlsFiles } from '../tls/paths.ts'
import { fail, pass, warn, type Outcome } from './finding.ts'

const SOON_MS = 30 * 86_400_000
const RENEW = 'clone-server tls renew; or renew your own'

/** Nothing is said of a source without TLS. @param now milliseconds */
export async function lookAtTls(
  files: TlsFiles | undefined,
  now: number,
): Promise<readonly Outcome[]> {
  if (!files) return []
  try {
    const expires = await checkTlsFiles(files)
    const until = `${files.cert}, valid until ${expires.toISOString().slice(0, 10)}`
    const left = expires.getTime() - now
    if (left < 0) return [fail(`${until}: no client takes it any more`, RENEW, 'USAGE')]
    return [left < SOON_MS ? warn(until, RENEW) : pass(until)]
  } catch (error) {
    const { message, hint } = toFailure(error)
    return [fail(message, hint, 'USAGE')]
  }
}
