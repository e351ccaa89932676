// revoke: a client's rights, its connections and its keys, in this order, so that it never gets in again meanwhile.

import { Failure, toFailure } from '../../shared/failures.ts'
import { withoutLines } from '../clients/authorized-keys.ts'
import { readKeyFile, writeKeyFile } from '../clients/key-file.ts'
import { lockClients, removeRights } from '../clients/registry.ts'
import { checkClient } from '../clients/rights.ts'
import type { Paths } from '../config/schema.ts'
import { askServe } from '../serve/client.ts'
import type { Result } from '../serve/words.ts'

export interface Revoked {
  readonly client: string
  /** Whether it had rights. */
  readonly rights: boolean
  /** Lines that were removed from the file. */
  readonly keys: number
  readonly file: string
  /** What serve ended; undefined when it does not run. */
  readonly ended: Result<'operator.endClient'> | undefined
}

/**
 * @param file authorized_keys
 * @throws Failure USAGE when there is no such client; SOURCE_UNREACHABLE when serve runs and does not answer: then the
 * client has no rights and no key any more, but its connections may be there until serve is restarted
 */
export async function revoke(
  { clients, serveSocket }: Pick<Paths, 'clients' | 'serveSocket'>,
  client: string,
  file: string,
): Promise<Revoked> {
  checkClient(client)
  const unlock = await lockClients(clients)
  try {
    const keys = withoutLines(await readKeyFile(file), client)
    const rights = await removeRights(clients, client)
    const ended = await endClient(serveSocket, client).catch(toFailure)
    if (keys.removed > 0) await writeKeyFile(file, keys.text)
    if (ended instanceof Failure) throw ended
    const had = (ended?.connections ?? 0) + (ended?.leases ?? 0)
    if (!rights && keys.removed === 0 && had === 0)
      throw new Failure('USAGE', `there is no client ${client}: no rights, and no key in ${file}`, {
        remedy: 'see: clone-server clients; keys of another user: --file',
      })
    return { client, rights, keys: keys.removed, file, ended }
  } finally {
    unlock()
  }
}

/** @returns undefined when serve does not run: then the client has nothing that could be ended */
async function endClient(
  serveSocket: string,
  client: string,
): Promise<Result<'operator.endClient'> | undefined> {
  try {
    return await askServe(serveSocket, { role: 'operator' }, 'operator.endClient', { client })
  } catch (error) {
    const cause = error instanceof Failure ? (error.cause as NodeJS.ErrnoException) : undefined
    if (cause?.code === 'ENOENT' || cause?.code === 'ECONNREFUSED') return undefined
    throw error
  }
}

export function renderRevoked({ client, rights, keys, file, ended }: Revoked): string {
  return [
    `client ${client} is revoked: ${rights ? 'its rights are gone' : 'it had no rights'}`,
    `  ${keys} line(s) removed from ${file}${keys === 0 ? '; name the right one with --file' : ''}`,
    ended === undefined
      ? '  clone-server serve does not run, so nothing had to be ended'
      : `  ${ended.leases} lease(s) and ${ended.connections} connection(s) ended`,
  ].join('\n')
}
