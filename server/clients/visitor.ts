// Who talks to serve through a gate or a relay: a name that is as good as the socket it came by, and what it may do.

import { ALL_RIGHTS, LOCAL, permit, permitPeer, readRights } from './rights.ts'
import type { Rights, Verb } from './rights.ts'

export interface Visitor {
  readonly client: string
  /** An address, as its relay says; undefined when that does not tell. */
  readonly peer: string | undefined
  /** What it may do now. @throws Failure SOURCE_REFUSED when that is nothing */
  rights(): Promise<Rights>
  /** @throws Failure SOURCE_REFUSED with the reason why not */
  may(verb: Verb, domain?: string): Promise<Rights>
}

/**
 * @param directory one file of rights per client
 * @param byRoot whether only root can have opened the connection: then `local` needs no rights
 */
export function createVisitor(
  directory: string,
  { client, peer }: { readonly client: string; readonly peer?: string | undefined },
  byRoot: boolean,
): Visitor {
  async function rights(): Promise<Rights> {
    if (byRoot && client === LOCAL) return ALL_RIGHTS
    const found = await readRights(directory, client)
    permitPeer(client, found, peer)
    return found
  }
  return {
    client,
    peer,
    rights,
    async may(verb, domain) {
      const found = await rights()
      permit(client, found, verb, domain)
      return found
    },
  }
}
