// How many gates and relays each client has, so that one cannot starve the others, and how to end all of one client's. Root on
// this host is not counted.

import { Failure } from '../../shared/failures.ts'
import { LOCAL } from '../clients/rights.ts'

export interface Visits {
  /**
   * Counts a connection of a client in. @param end ends the connection
   * @returns a function that counts it out; SOURCE_REFUSED when the client has too many
   */
  enter(client: string, kind: Kind, end: () => void): (() => void) | Failure
  /** Ends all connections of a client. @returns how many */
  endAll(client: string): number
}

/** One gate per pull; one relay per NBD connection, well below what serve takes in all. */
const MOST = { gate: 16, relay: 48 } as const
type Kind = keyof typeof MOST

interface Visit {
  readonly kind: Kind
  readonly end: () => void
}

export function createVisits(): Visits {
  const visits = new Map<string, Set<Visit>>()
  return {
    enter(client, kind, end) {
      const own = visits.get(client) ?? new Set<Visit>()
      const open = [...own].filter(one => one.kind === kind).length
      if (client !== LOCAL && open >= MOST[kind])
        return new Failure('SOURCE_REFUSED', `client ${client} has ${open} ${kind}s open already`, {
          remedy: 'end some of its pulls, or wait for them',
        })
      const visit = { kind, end }
      visits.set(client, own.add(visit))
      return () => {
        own.delete(visit)
        if (own.size === 0) visits.delete(client)
      }
    },
    endAll(client) {
      const own = [...(visits.get(client) ?? [])]
      for (const { end } of own) end()
      return own.length
    },
  }
}
