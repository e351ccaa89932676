// Whether all that TLS rests on is there, fits together, and is good for a while: the listener's certificate, the authority,
// its list of revoked certificates, and what was issued to clients.

import { readFile } from 'node:fs/promises'
import { toFailure } from '../../shared/failures.ts'
import { SOON_MS } from '../tls/ends.ts'
import { dayOf, NEW_AUTHORITY, readIndexIfAny } from '../tls/folder.ts'
import { checkTlsFiles } from '../tls/identity.ts'
import type { TlsFiles, TlsFolder } from '../tls/paths.ts'
import { endOfLists } from '../tls/revocations.ts'
import { fail, pass, warn, type Outcome } from './finding.ts'

const RENEW = 'clone-server tls renew; or renew your own'

/** Nothing is said of a source without TLS. @param folder of certificates that were made here. @param now milliseconds */
export async function lookAtTls(
  files: TlsFiles | undefined,
  folder: TlsFolder,
  now: number,
): Promise<readonly Outcome[]> {
  if (!files) return []
  try {
    const { cert, ca } = await checkTlsFiles(files)
    // What was issued in the folder says nothing of clients whose certificates are of another authority.
    const isOurs = files.ca === folder.caCert
    const renewCa = isOurs ? NEW_AUTHORITY : 'renew your authority, and give its certificate to all'
    return [
      judge({ what: files.cert, ends: cert, over: 'no client takes it', remedy: RENEW }, now),
      judge({ what: files.ca, ends: ca, over: 'nobody believes it', remedy: renewCa }, now),
      ...(files.crl === undefined ? [] : [await lookAtList(files.crl, isOurs, now)]),
      ...(isOurs ? await lookAtClients(folder, now) : []),
    ]
  } catch (error) {
    const { message, hint } = toFailure(error)
    return [fail(message, hint, 'USAGE')]
  }
}

interface Ending {
  readonly what: string
  readonly ends: Date
  /** What comes of it. */
  readonly over: string
  readonly remedy: string
}

function judge({ what, ends, over, remedy }: Ending, now: number): Outcome {
  const left = ends.getTime() - now
  if (left < 0) return fail(`${what}, over since ${dayOf(ends)}: ${over} any more`, remedy, 'USAGE')
  const until = `${what}, valid until ${dayOf(ends)}`
  return left < SOON_MS ? warn(until, remedy) : pass(until)
}

async function lookAtList(file: string, isOurs: boolean, now: number): Promise<Outcome> {
  const ends = endOfLists(await readFile(file, 'utf8'))
  if (!ends) return pass(`${file}, without an end`)
  // Ours ends with its authority.
  const remedy = isOurs ? NEW_AUTHORITY : 'have your authority make a new list'
  return judge({ what: file, ends, over: 'nobody is let in', remedy }, now)
}

/** Of several certificates of one client the last to end counts; those that are good for long are one line. */
async function lookAtClients(folder: TlsFolder, now: number): Promise<Outcome[]> {
  const ends = new Map<string, number>()
  for (const { kind, name, revokedAt, notAfter } of (await readIndexIfAny(folder)) ?? [])
    if (kind === 'client' && revokedAt === undefined)
      ends.set(name, Math.max(ends.get(name) ?? 0, Date.parse(notAfter)))
  const soon = [...ends].filter(([, end]) => end - now < SOON_MS)
  if (soon.length === 0)
    return ends.size === 0 ? [] : [pass(`certificates of ${ends.size} client(s), all for longer`)]
  return soon.map(([name, end]) => {
    const remedy = `clone-server tls issue ${name}, and its folder to ${name}; when it pulls no more: clone-server revoke ${name}`
    const over = 'it is not let in'
    return judge({ what: `certificate of client ${name}`, ends: new Date(end), over, remedy }, now)
  })
}
