// revoke: a client's rights, its certificates, its connections and its keys, in this order, so that it never gets in again
// meanwhile. What one of them fails at does not keep the others from being done.

import { Failure, toFailure } from '../../shared/failures.ts'
import { withoutLines } from '../clients/authorized-keys.ts'
import { openKeyFile } from '../clients/key-file.ts'
import { lockClients, removeRights } from '../clients/registry.ts'
import { checkClient } from '../clients/rights.ts'
import type { Paths } from '../config/paths.ts'
import { endClient, renderEnded, type Ended } from '../serve/end-client.ts'
import { revokeClientIfAny } from '../tls/folder.ts'
import type { TlsFolder } from '../tls/paths.ts'

export interface Revoked {
  readonly client: string
  /** Whether it had rights. */
  readonly rights: boolean
  /** Certificates that are refused from now on; undefined when this source has issued none to anybody. */
  readonly certificates: number | undefined
  /** Lines that were removed from the file. */
  readonly keys: number
  readonly file: string
  /** What serve ended; undefined when it does not run. */
  readonly ended: Ended
}

/**
 * @param file authorized_keys. @param tls where the certificates are that this source issued, if it did
 * @throws Failure USAGE when there is no such client; SOURCE_UNREACHABLE when serve runs and does not answer, and as the
 * files': then the client has no rights any more, and the message says what was not done
 */
export async function revoke(
  { clients, serveSocket }: Pick<Paths, 'clients' | 'serveSocket'>,
  tls: TlsFolder,
  client: string,
  file: string,
): Promise<Revoked> {
  checkClient(client)
  const unlock = await lockClients(clients)
  const failures: Failure[] = []
  const attempt = async <T>(work: () => Promise<T>): Promise<T | undefined> => {
    try {
      return await work()
    } catch (error) {
      failures.push(toFailure(error))
      return undefined
    }
  }
  try {
    const rights = await removeRights(clients, client)
    const certificates = await attempt(() => revokeClientIfAny(tls, client))
    const ended = await attempt(() => endClient(serveSocket, client, 'revoked'))
    const keys = (await attempt(() => removeKeys(file, client))) ?? 0
    const [failure] = failures
    if (failure) {
      const what = failures.map(({ message }) => message).join('; ')
      throw new Failure(failure.code, `client ${client} has no rights any more, but: ${what}`, {
        cause: failure,
        remedy: failure.remedy,
      })
    }
    const had = (ended?.connections ?? 0) + (ended?.leases ?? 0) + (certificates ?? 0)
    if (!rights && keys === 0 && had === 0)
      throw new Failure('USAGE', `there is no client ${client}: no rights, and no key in ${file}`, {
        remedy: 'see: clone-server clients; keys of another user: --file',
      })
    return { client, rights, certificates, keys, file, ended }
  } finally {
    unlock()
  }
}

/** @returns how many lines */
async function removeKeys(file: string, client: string): Promise<number> {
  await using opened = await openKeyFile(file)
  if (!opened) return 0
  const { text, removed } = withoutLines(opened.text, client)
  if (removed > 0) await opened.write(text)
  return removed
}

export function renderRevoked(done: Revoked): string {
  const { client, rights, certificates, keys, file, ended } = done
  return [
    `client ${client} is revoked: ${rights ? 'its rights are gone' : 'it had no rights'}`,
    ...(certificates === undefined ? [] : [`  ${certificates} certificate(s) revoked`]),
    `  ${renderEnded(ended)}`,
    `  ${keys} line(s) removed from ${file}${keys === 0 ? '; name the right one with --file' : ''}`,
  ].join('\n')
}
