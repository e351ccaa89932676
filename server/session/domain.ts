// The sessions of one domain. At most one is frozen or merging; everything that changes it goes through one queue.

import { Failure, toFailure } from '../../shared/failures.ts'
import { domainSettings } from '../config/schema.ts'
import { createHasher } from '../digest/hasher.ts'
import type { Source } from '../source.ts'
import { begin } from './begin.ts'
import { createLease, isAlive, isForgotten, lapseOf, makeRoom, overFailure } from './lease.ts'
import type { Lease, Refusal } from './lease.ts'
import { makeLink, removeLink } from './links.ts'
import { endOff } from './off.ts'
import { createQueue, repeatInTime } from './queue.ts'
import { recoverDomain, recoverJournal } from './recover.ts'
import {
  connectionGone,
  createSession,
  forgetMaps,
  frozenSession,
  isHeld,
  isJoinable,
  whatKeeps,
  type Member,
  type Session,
} from './session.ts'
import { settle } from './settle.ts'
import { createWatchdog } from './watchdog.ts'

export interface DomainSessions {
  readonly domain: string
  current(): Session | undefined
  /** The session that ended last, since serve was started. */
  last(): Session | undefined
  /** The last refusals of connections, newest last. */
  readonly refusals: Refusal[]
  leases(): readonly Lease[]
  /** Reserves a lease; it joins a frozen session that may be joined. @throws Failure SOURCE_REFUSED over the cap */
  open(client: string, tracking?: boolean): { lease: Lease; joined: boolean }
  /** Freezes now, or joins, and holds the session for stock clients until `release`. */
  hold(client: string): Promise<Lease>
  /** Lets a connection in: returns when its link is there. @throws Failure with the reason of the refusal */
  admit(member: Member): Promise<void>
  /** The connection has gone, or is in its postrun. Returns the session when that ended it. */
  leave(memberId: string): Promise<Session | undefined>
  /** The client has read everything. @throws Failure unless its session is still frozen */
  release(lease: Lease): Promise<string>
  /** Ends all leases of a client of the gate. @returns how many */
  endLeases(client: string, reason: Failure): number
  /** Settles what an earlier run left. Never while a session is on. */
  recover(mergeOverlays?: readonly string[]): Promise<'nothing to do' | 'recovered' | 'in session'>
  /** Lets nobody in any more, ends what is on and returns when it is merged. @throws Failure when it is not */
  stop(reason: Failure): Promise<void>
  /** Called every second: lapses leases, lets gone connections go, ends sessions over their limits. */
  tick(): void
}

export function createDomainSessions(source: Source, domain: string): DomainSessions {
  const { log } = source
  const exclusive = createQueue()
  const settings = domainSettings(source.config, domain)
  const leases = new Map<string, Lease>()
  const watchdog = createWatchdog(settings)
  const hashingLog = log.child({ domain })
  let current: Session | undefined
  let last: Session | undefined
  let stopping: Failure | undefined

  /** Joins or begins; undefined means: another session must end first. Runs in the queue. */
  async function enter(byHand = false): Promise<Session | undefined> {
    if (stopping) throw stopping
    if (current) return isJoinable(current) ? current : undefined
    await recoverJournal(source, domain)
    const tracked = byHand || [...leases.values()].some(lease => lease.tracking && isAlive(lease))
    const frozen = await begin(source, domain, tracked)
    const session = createSession(domain, frozen, createHasher(hashingLog, settings.hashing))
    current = session
    session.frozen.off?.watch.onBreak(reason => endSession(session, reason))
    return session
  }

  /** Repeats an attempt until it gives something, waiting for the session before to end; bounded. */
  function inTime<T>(attempt: (late: () => boolean) => Promise<T | undefined>): Promise<T> {
    return repeatInTime(settings.mergeWait, exclusive, attempt, {
      before: () => current?.over,
      failure: () =>
        new Failure('SOURCE_REFUSED', `domain ${domain} is busy: ${whatKeeps(current)}`, {
          remedy: 'try again later; on the source run: clone-server status',
        }),
    })
  }

  const livingOf = (client: string): Lease[] =>
    [...leases.values()].filter(one => one.kind === 'gate' && one.client === client && isAlive(one))

  function bind(lease: Lease, session: Session): void {
    lease.session = session
    lease.state = 'live'
    lease.idleSince = Date.now()
    session.leases.add(lease)
  }

  /** One connection's attempt to get in. Runs in the queue. */
  async function admitNow(member: Member, late: () => boolean): Promise<Session | undefined> {
    const lease = member.token === undefined ? undefined : leases.get(member.token)
    if (member.token !== undefined && (!lease || !isAlive(lease))) throw overFailure(lease)
    if (lease?.session && lease.session.state !== 'frozen') throw overFailure(lease)
    if (member.isGone()) throw connectionGone()
    const session =
      lease?.session ??
      (await enter().catch((error: unknown) => {
        // The client's other connections need not freeze the guest again to hear the same.
        if (lease) endLease(lease, 'ended', toFailure(error))
        throw error
      }))
    if (!session) return undefined
    try {
      const disk = session.frozen.disks.find(one => one.target === member.target)
      if (!disk)
        throw new Failure('SOURCE_REFUSED', `domain ${domain} exports no disk ${member.target}`)
      if (lease && !isAlive(lease)) throw overFailure(lease)
      if (member.isGone() || late()) throw connectionGone()
      if (lease && !lease.session) bind(lease, session)
      // A member before its link is there: a tick in between must not take the session for unheld.
      session.members.set(member.id, member)
      session.readers.add(member)
      await makeLink(member.link, disk.base)
      if (!session.members.has(member.id)) {
        await dropLink(session, member)
        throw connectionGone()
      }
      return session
    } catch (error) {
      session.members.delete(member.id)
      if (!isHeld(session)) session.reason ??= toFailure(error)
      throw error
    } finally {
      endIfUnheld(session)
    }
  }

  /** The classic daemon's connections share one link. */
  async function dropLink(session: Session, { link }: Member): Promise<void> {
    if (![...session.members.values()].some(other => other.link === link)) await removeLink(link)
  }

  /** Ends a session that nobody holds any more; at once no one can join it. */
  function endIfUnheld(session: Session): void {
    if (session.state === 'frozen' && !isHeld(session)) void merge(session)
  }

  /** Reap readers, remove links, merge. The state changes at once, the work waits for its turn. Never rejects. */
  function merge(session: Session): Promise<void> {
    if (session.state !== 'frozen') return session.over
    session.state = 'merging'
    void exclusive(async () => {
      const { journal, recoveryPoint, off } = session.frozen
      try {
        const members = [...session.members.values()]
        await Promise.all(members.map(member => removeLink(member.link)))
        await Promise.all([session.hasher.end(), ...members.map(member => member.reap())])
        session.settled = await (off ? endOff(source, session.frozen) : settle(source, journal))
        session.state = 'merged'
      } catch (error) {
        session.failure = toFailure(error)
        session.state = 'failed'
        log.error({ domain, recoveryPoint: recoveryPoint.id, error }, 'merge failed')
      }
      forgetMaps(session)
      last = session
      if (current === session) current = undefined
      session.markOver()
    })
    return session.over
  }

  function endLease(lease: Lease, state: 'released' | 'ended', reason?: Failure): void {
    if (!isAlive(lease)) return
    lease.state = state
    lease.reason = reason
    const { session } = lease
    if (session) {
      session.leases.delete(lease)
      for (const member of session.members.values())
        if (member.token === lease.token) member.reap().catch(unexpected)
      if (!isHeld(session)) session.reason ??= reason
      endIfUnheld(session)
    }
    if (reason) lease.notify(reason)
  }

  async function endSession(session: Session, reason: Failure): Promise<void> {
    if (session.state === 'frozen') {
      session.reason = reason
      const { message, remedy } = reason
      const { id } = session.frozen.recoveryPoint
      log.warn({ domain, recoveryPoint: id, reason: message, remedy }, 'session ended')
      const merged = merge(session)
      for (const lease of [...session.leases]) endLease(lease, 'ended', reason)
      await merged
    } else await session.over
  }

  function unexpected(error: unknown): void {
    log.error({ domain, error }, 'unexpected')
  }

  function checkLease(lease: Lease, now: number): void {
    const members = [...(lease.session?.members.values() ?? [])]
    if (members.some(member => member.token === lease.token)) lease.idleSince = now
    const lapse = lapseOf(lease, now)
    if (lapse) {
      log.warn({ domain, client: lease.client, reason: lapse.message }, 'lease ended')
      endLease(lease, 'ended', lapse)
    }
    if (isForgotten(lease, now)) leases.delete(lease.token)
  }

  const sessions: DomainSessions = {
    domain,
    current: () => current,
    last: () => last,
    refusals: [],
    leases: () => [...leases.values()],
    open(client, tracking = false) {
      if (stopping) throw stopping
      makeRoom(leases, domain, client)
      const lease = createLease(domain, client, 'gate', tracking)
      leases.set(lease.token, lease)
      const joined = current !== undefined && isJoinable(current)
      if (joined && current) bind(lease, current)
      return { lease, joined }
    },
    hold(client) {
      return inTime(async late => {
        const session = await enter(true)
        if (!session) return undefined
        if (!late()) {
          const lease = createLease(domain, client, 'operator')
          leases.set(lease.token, lease)
          bind(lease, session)
          return lease
        }
        endIfUnheld(session)
        return undefined
      })
    },
    async admit(member) {
      await inTime(late => admitNow(member, late))
      if (member.isGone()) await sessions.leave(member.id)
    },
    async leave(memberId) {
      const session = current
      const member = session?.members.get(memberId)
      if (!session || !member) return undefined
      session.members.delete(memberId)
      await dropLink(session, member)
      endIfUnheld(session)
      return isHeld(session) ? undefined : session
    },
    async release(lease) {
      const { frozen } = frozenSession(lease)
      await frozen.off?.prove().catch((error: unknown) => frozen.off?.watch.break(toFailure(error)))
      frozenSession(lease)
      endLease(lease, 'released')
      return frozen.recoveryPoint.id
    },
    endLeases(client, reason) {
      const own = livingOf(client)
      for (const lease of own) endLease(lease, 'ended', reason)
      return own.length
    },
    recover: (mergeOverlays = []) =>
      exclusive(async () => {
        if (current) return 'in session'
        return (await recoverDomain(source, domain, mergeOverlays)) ? 'recovered' : 'nothing to do'
      }),
    async stop(reason) {
      stopping = reason
      for (const lease of leases.values()) if (!lease.session) endLease(lease, 'ended', reason)
      // A begin that is under way gives its session only after its turn.
      await exclusive(() => Promise.resolve())
      const session = current
      if (session) await endSession(session, reason)
      await exclusive(() => Promise.resolve())
      if (session?.failure) throw session.failure
    },
    tick() {
      const now = Date.now()
      for (const lease of leases.values()) checkLease(lease, now)
      const session = current
      if (session?.state !== 'frozen') return
      for (const member of session.members.values())
        if (member.isGone()) sessions.leave(member.id).catch(unexpected)
      endIfUnheld(session)
      watchdog(session)
        .then(broken => broken && endSession(session, broken))
        .catch(unexpected)
    },
  }
  return sessions
}
