// A lease: one client's hold on a session, under a token. It is reserved by `open`, bound to a session by its first
// connection, kept by renewals, and over by release, lapse, a limit, or when nothing of its client is left.

import { randomBytes } from 'node:crypto'
import { Failure } from '../../shared/failures.ts'
import type { Outcome } from '../../shared/gate.ts'
import type { Session } from './session.ts'

/** Renewed every 10 s, lapses after 30 s. */
const LEASE_LAPSE_MS = 30_000
/** Without any connection a living lease keeps its session so long. */
const LEASE_IDLE_MS = 60_000
/** A transport that carried all of a client may break and come back; a client that was killed is not waited for longer. */
const RETURN_MS = 3_000
/** More than a client with retries needs, few enough that a mad one costs nothing. */
const LEASES_PER_CLIENT = 8
/** Leases that are over, whose outcome may still be asked. */
const REMEMBERED_PER_CLIENT = 32

export type Refusal = Outcome['refusals'][number]

export interface Lease {
  readonly token: string
  readonly domain: string
  /** Client name of the gate, or `operator` for a session held by hand. */
  readonly client: string
  readonly kind: 'gate' | 'operator'
  /** Its client can make use of recorded changes. */
  readonly tracking: boolean
  state: 'reserved' | 'live' | 'released' | 'ended'
  session: Session | undefined
  renewedAt: number
  /** The gate connection that opened or last renewed it; undefined when that has closed. */
  gate: object | undefined
  /** When that closed. */
  gateLostAt: number
  /** When its last connection went, or it was bound without one. */
  idleSince: number
  /** Why it ended, when the client did not release it. */
  reason: Failure | undefined
  readonly refusals: Refusal[]
  /** Requests for digests that are not answered yet. */
  hashing: number
  /** Tells the client that its session ended under it. */
  notify: (reason: Failure) => void
}

export function createLease(
  domain: string,
  client: string,
  kind: Lease['kind'],
  tracking = false,
): Lease {
  const now = Date.now()
  return {
    token: randomBytes(16).toString('hex'),
    domain,
    client,
    kind,
    tracking,
    state: 'reserved',
    session: undefined,
    renewedAt: now,
    gate: undefined,
    gateLostAt: now,
    idleSince: now,
    reason: undefined,
    refusals: [],
    hashing: 0,
    notify: () => undefined,
  }
}

export function isAlive(lease: Lease): boolean {
  return lease.state === 'reserved' || lease.state === 'live'
}

/** How long what became of a lease is known. */
const AGE_OF_MEMORY_MS = 3600_000

/** Whether nobody can want to know any more what became of a lease. @param now milliseconds since the epoch */
export function isForgotten(lease: Lease, now: number): boolean {
  const settled = lease.session?.state !== 'frozen' && lease.session?.state !== 'merging'
  return !isAlive(lease) && settled && now - lease.renewedAt > AGE_OF_MEMORY_MS
}

/**
 * Makes room for another lease of a client among those of a domain, oldest first; what was over longest is forgotten.
 * @throws Failure SOURCE_REFUSED when too many of its leases live
 */
export function makeRoom(leases: Map<string, Lease>, domain: string, client: string): void {
  const own = [...leases.values()].filter(lease => lease.client === client)
  const living = own.filter(isAlive).length
  if (living >= LEASES_PER_CLIENT)
    throw new Failure(
      'SOURCE_REFUSED',
      `client ${client} has ${living} sessions of ${domain} open already`,
    )
  const over = own.filter(lease => !isAlive(lease))
  for (const { token } of over.slice(0, -REMEMBERED_PER_CLIENT)) leases.delete(token)
}

/** What a client hears whose lease is over, or was never there. */
export function overFailure(lease: Lease | undefined): Failure {
  const why = lease?.reason ? `: ${lease.reason.message}` : ''
  return new Failure('SOURCE_REFUSED', `the session of this token is over${why}`, {
    remedy: lease?.reason?.remedy,
  })
}

/**
 * Why a living lease of the gate lapses now; undefined while it may go on. `idleSince` must be `now` while it has a
 * connection.
 * @param now milliseconds since the epoch
 */
export function lapseOf(lease: Lease, now: number): Failure | undefined {
  if (lease.kind !== 'gate' || !isAlive(lease)) return undefined
  const lapse = (why: string): Failure => new Failure('SOURCE_REFUSED', `the lease lapsed: ${why}`)
  if (lease.gate === undefined && now - Math.max(lease.idleSince, lease.gateLostAt) > RETURN_MS)
    return lapse('its client went away, gate and connections')
  if (now - lease.renewedAt > LEASE_LAPSE_MS)
    return lapse('the client sent no sign of life for 30 s')
  if (lease.session && now - lease.idleSince > LEASE_IDLE_MS)
    return lapse('it had no connection for 60 s')
  return undefined
}
