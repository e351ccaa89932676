// A session: the time during which a domain's bases are frozen, who holds it, and how it ended.

import { Failure } from '../../shared/failures.ts'
import type { GrainSet } from '../../shared/grain-set.ts'
import type { Hasher } from '../digest/hasher.ts'
import { readAllocation } from './allocation.ts'
import type { Frozen } from './begin.ts'
import { isAlive, overFailure, type Lease } from './lease.ts'

/** How one disk came back onto its base. */
export interface SettledDisk {
  readonly target: string
  readonly mergeMs: number
  readonly overlayBytes: number
}

/** One NBD connection inside a session. */
export interface Member {
  /** Connection id that serve gave out, or `classic-PID` for the classic daemon's child. */
  readonly id: string
  readonly domain: string
  readonly target: string
  /** Token in the export name; a connection without one holds the session by itself. */
  readonly token: string | undefined
  readonly link: string
  /** Where its client is: an address, `unix` or `classic`. */
  readonly peer: string
  /** Its client's name, when it came through a relay. */
  readonly client: string | undefined
  /** Bytes that went to its client so far; still known when it has left. */
  moved(): number
  /** Ends the process that reads, and returns when it is gone. */
  reap(): Promise<void>
  /** Whether its process is gone, or its hook died before it was let in. */
  isGone(): boolean
}

export interface Session {
  readonly domain: string
  readonly frozen: Frozen
  readonly frozenAt: number
  readonly leases: Set<Lease>
  readonly members: Map<string, Member>
  /** Every member there ever was, for what it moved. */
  readonly readers: Set<Member>
  /** Computes digests of the bases; like the readers it is ended before they change. */
  readonly hasher: Hasher
  /** Target -> where its base has data, once that was asked. */
  readonly allocations: Map<string, Promise<GrainSet>>
  /** Bytes of its disks that its clients were told of, and need not read. */
  described: number
  state: 'frozen' | 'merging' | 'merged' | 'failed'
  /** Why it ended, when its holders did not just let it go. */
  reason: Failure | undefined
  failure: Failure | undefined
  settled: readonly SettledDisk[]
  /** When it was over, milliseconds since the epoch. */
  overAt: number | undefined
  /** Resolves, never rejects, when state is `merged` or `failed`. */
  readonly over: Promise<void>
  readonly markOver: () => void
}

/** A connection that nobody waits for any more is let in nowhere, and nobody is told. */
export function connectionGone(): Failure {
  return new Failure('SOURCE_REFUSED', 'the connection went away')
}

/** What only readers asked for; megabytes for a large disk, and sessions are remembered. */
export function forgetMaps({ allocations, frozen }: Session): void {
  allocations.clear()
  frozen.tracking.changed.clear()
}

export function createSession(domain: string, frozen: Frozen, hasher: Hasher): Session {
  const { promise, resolve } = withResolvers()
  const session: Session = {
    domain,
    frozen,
    frozenAt: Date.now(),
    leases: new Set(),
    members: new Map(),
    readers: new Set(),
    hasher,
    allocations: new Map(),
    described: 0,
    state: 'frozen',
    reason: undefined,
    failure: undefined,
    settled: [],
    overAt: undefined,
    over: promise,
    markOver() {
      session.overAt = Date.now()
      resolve()
    },
  }
  return session
}

function withResolvers(): { promise: Promise<void>; resolve: () => void } {
  let resolve = (): void => undefined
  const promise = new Promise<void>(done => (resolve = done))
  return { promise, resolve }
}

/** Bare connections join a session this young, or one held by an operator. */
const JOIN_WITHIN_MS = 60_000

export function isJoinable(session: Session): boolean {
  if (session.state !== 'frozen') return false
  return isHeldByOperator(session) || Date.now() - session.frozenAt < JOIN_WITHIN_MS
}

/** Why a domain cannot be frozen now. @param session that is on */
export function whatKeeps(session: Session | undefined): string {
  if (!session) return 'it is recovering, or being frozen'
  const frozen = session.state === 'frozen'
  return frozen ? "another client's session is on" : 'its last session is being merged'
}

export function isHeldByOperator(session: Session): boolean {
  return [...session.leases].some(lease => lease.kind === 'operator')
}

/** Bytes that went to all its clients so far, were hashed for them, or described to them. */
export function movedBy(session: Session): number {
  let sum = session.hasher.hashed() + session.described
  for (const member of session.readers) sum += member.moved()
  return sum
}

/** Whether anyone still holds the session: a living lease, or a connection that came without one. */
export function isHeld(session: Session): boolean {
  return (
    session.leases.size > 0 ||
    [...session.members.values()].some(member => member.token === undefined)
  )
}

/** The session that a living lease holds. @throws Failure unless it is frozen */
export function frozenSession(lease: Lease): Session {
  if (!isAlive(lease) || lease.session?.state !== 'frozen') throw overFailure(lease)
  return lease.session
}

/** Where a frozen disk has data; found out once. @throws Failure SOURCE_REFUSED when that cannot be known */
export function allocationOf(session: Session, target: string): Promise<GrainSet> {
  const disk = session.frozen.disks.find(one => one.target === target)
  if (!disk)
    return Promise.reject(new Failure('SOURCE_REFUSED', `the session has no disk ${target}`))
  const known = session.allocations.get(target) ?? readAllocation(disk.base, disk.size)
  session.allocations.set(target, known)
  return known
}
