// Asking serve to end what a client has open, after something was taken away from it.

import { Failure } from '../../shared/failures.ts'
import { askServe } from './client.ts'
import type { Params, Result } from './words.ts'

/** What serve ended; undefined when it does not run: then the client has nothing that could be ended. */
export type Ended = Result<'operator.endClient'> | undefined

/** @throws Failure SOURCE_UNREACHABLE when serve runs and does not answer */
export async function endClient(
  serveSocket: string,
  client: string,
  why: Params<'operator.endClient'>['why'],
): Promise<Ended> {
  try {
    return await askServe(serveSocket, { role: 'operator' }, 'operator.endClient', { client, why })
  } catch (error) {
    const cause = error instanceof Failure ? (error.cause as NodeJS.ErrnoException) : undefined
    if (cause?.code === 'ENOENT' || cause?.code === 'ECONNREFUSED') return undefined
    throw error
  }
}

/** One line for people. */
export function renderEnded(ended: Ended): string {
  return ended === undefined
    ? 'clone-server serve does not run, so nothing had to be ended'
    : `${ended.leases} lease(s) and ${ended.connections} connection(s) ended`
}
