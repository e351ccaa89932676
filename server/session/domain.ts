// The sessions of one domain. At most one is frozen or merging; everything that changes it goes through one queue.

import { setTimeout as delay } from 'node:timers/promises'
import { Failure, toFailure } from '../../shared/failures.ts'
import { domainSettings } from '../config/schema.ts'
import type { Source } from '../source.ts'
import { begin } from './begin.ts'
import { isOpen, readJournal } from './journal.ts'
import { createLease, isAlive, LEASE_IDLE_MS, LEASE_LAPSE_MS, type Lease } from './lease.ts'
import { makeLink, removeLink } from './links.ts'
import { createQueue } from './queue.ts'
import { createSession, isHeld, isJoinable, type Member, type Session } from './session.ts'
import { settle } from './settle.ts'

export interface DomainSessions {
  readonly domain: string
  current(): Session | undefined
  leases(): readonly Lease[]
  /** Reserves a lease; it joins a frozen session that may be joined. */
  open(client: string): { lease: Lease; joined: boolean }
  /** Freezes now, or joins, and holds the session for stock clients until `release`. */
  hold(client: string): Promise<Lease>
  /** Lets a connection in: returns when its link is there. @throws Failure with the reason of the refusal */
  admit(member: Member): Promise<void>
  /** The connection has gone, or is in its postrun. Returns the session when that ended it. */
  leave(memberId: string): Promise<Session | undefined>
  /** The client has read everything. @throws Failure unless its session is still frozen */
  release(lease: Lease): string
  /** Settles what an earlier run left. Never while a session is on. */
  recover(): Promise<'nothing to do' | 'recovered' | 'in session'>
  /** Ends the current session, whoever holds it, and returns when it is merged. */
  end(reason: Failure): Promise<void>
  /** Called every second: lapses leases, reaps gone connections, ends sessions over their limits. */
  tick(): void
}

const AGE_OF_MEMORY_MS = 3600_000

export function createDomainSessions(source: Source, domain: string): DomainSessions {
  const { log, paths } = source
  const exclusive = createQueue()
  const settings = domainSettings(source.config, domain)
  const leases = new Map<string, Lease>()
  let current: Session | undefined

  async function recoverLeftover(): Promise<boolean> {
    const journal = await readJournal(paths.journals, domain)
    if (!journal || !isOpen(journal)) return false
    log.warn({ domain, session: journal.intent.session }, 'recovering what an earlier run left')
    await settle(source, journal)
    return true
  }

  /** Joins or begins; undefined means: another session must end first. */
  async function enter(): Promise<Session | undefined> {
    if (current) return isJoinable(current) ? current : undefined
    await recoverLeftover()
    const frozen = await begin(source, domain)
    current = createSession(domain, frozen)
    return current
  }

  /** Repeats an attempt until it gives a session, waiting for the one before to end, bounded. */
  async function enterInTime<T>(attempt: () => Promise<T | undefined>): Promise<T> {
    const end = Date.now() + settings.mergeWait
    const late = new AbortController()
    const timer = delay(settings.mergeWait, undefined, { signal: late.signal, ref: false }).then(
      () => 'late' as const,
      () => 'late' as const,
    )
    try {
      for (;;) {
        const guarded = exclusive(() => (Date.now() < end ? attempt() : Promise.resolve(undefined)))
        guarded.catch(() => undefined)
        const got = await Promise.race([guarded, timer])
        if (got !== undefined && got !== 'late') return got
        if (current) await Promise.race([current.over, timer])
        if (Date.now() >= end || got === 'late')
          throw new Failure(
            'SOURCE_REFUSED',
            `domain ${domain} is busy: an earlier session is not merged yet`,
            {
              remedy: `try again later; on the source run: clone-server status`,
            },
          )
      }
    } finally {
      late.abort()
    }
  }

  function bind(lease: Lease, session: Session): void {
    lease.session = session
    lease.state = 'live'
    lease.idleSince = Date.now()
    session.leases.add(lease)
  }

  async function admitNow(member: Member): Promise<Session | undefined> {
    const lease = member.token === undefined ? undefined : leases.get(member.token)
    if (member.token !== undefined && (!lease || !isAlive(lease)))
      throw new Failure(
        'SOURCE_REFUSED',
        `the session of this token is over${lease?.reason ? `: ${lease.reason.message}` : ''}`,
      )
    if (lease?.session && lease.session.state !== 'frozen')
      throw new Failure('SOURCE_REFUSED', 'the session of this token is over')
    const session = lease?.session ?? (await enter())
    if (!session) return undefined
    const disk = session.frozen.disks.find(one => one.target === member.target)
    try {
      if (!disk)
        throw new Failure('SOURCE_REFUSED', `domain ${domain} exports no disk ${member.target}`)
      if (lease && !lease.session) bind(lease, session)
      if (member.gone) throw new Failure('SOURCE_REFUSED', 'the connection went away')
      await makeLink(member.link, disk.base)
      session.members.set(member.id, member)
      return session
    } finally {
      endIfUnheld(session)
    }
  }

  /** Ends a session that nobody holds any more; at once no one can join it. */
  function endIfUnheld(session: Session): void {
    if (session.state === 'frozen' && !isHeld(session)) void merge(session)
  }

  /** Reap readers, remove links, merge. The state changes at once, the work waits for its turn. */
  function merge(session: Session): Promise<void> {
    if (session.state !== 'frozen') return session.over
    session.state = 'merging'
    void exclusive(async () => {
      const { journal, recoveryPoint } = session.frozen
      try {
        for (const member of session.members.values()) await removeLink(member.link)
        await Promise.all([...session.members.values()].map(one => one.reap()))
        session.settled = await settle(source, journal)
        session.state = 'merged'
      } catch (error) {
        session.failure = toFailure(error)
        session.state = 'failed'
        log.error({ domain, recoveryPoint: recoveryPoint.id, error }, 'merge failed')
      }
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
    if (reason) lease.notify(reason)
    if (!session) return
    session.leases.delete(lease)
    for (const member of session.members.values())
      if (member.token === lease.token) void member.reap()
    endIfUnheld(session)
  }

  async function endSession(session: Session, reason: Failure): Promise<void> {
    if (session.state === 'frozen') {
      session.reason = reason
      log.warn({ domain, reason: reason.message }, 'session ended')
      const merged = merge(session)
      for (const lease of [...session.leases]) endLease(lease, 'ended', reason)
      await merged
    } else await session.over
  }

  function checkLease(lease: Lease, now: number): void {
    if (lease.kind === 'gate' && isAlive(lease)) {
      const connections = [...(lease.session?.members.values() ?? [])].filter(
        one => one.token === lease.token,
      )
      if (connections.length > 0) lease.idleSince = now
      if (now - lease.renewedAt > LEASE_LAPSE_MS)
        endLease(
          lease,
          'ended',
          new Failure(
            'SOURCE_REFUSED',
            'the lease lapsed: the client sent no sign of life for 30 s',
          ),
        )
      else if (lease.session && now - lease.idleSince > LEASE_IDLE_MS)
        endLease(
          lease,
          'ended',
          new Failure('SOURCE_REFUSED', 'the lease lapsed: it had no connection for 60 s'),
        )
    }
    if (
      !isAlive(lease) &&
      lease.session?.state !== 'merging' &&
      now - lease.renewedAt > AGE_OF_MEMORY_MS
    )
      leases.delete(lease.token)
  }

  const sessions: DomainSessions = {
    domain,
    current: () => current,
    leases: () => [...leases.values()],
    open(client) {
      const lease = createLease(domain, client, 'gate')
      leases.set(lease.token, lease)
      const joined = current !== undefined && isJoinable(current)
      if (joined && current) bind(lease, current)
      return { lease, joined }
    },
    async hold(client) {
      const session = await enterInTime(enter)
      const lease = createLease(domain, client, 'operator')
      leases.set(lease.token, lease)
      bind(lease, session)
      return lease
    },
    async admit(member) {
      await enterInTime(() => admitNow(member))
      if (member.gone) await sessions.leave(member.id)
    },
    async leave(memberId) {
      const session = current
      const member = session?.members.get(memberId)
      if (!session || !member) return undefined
      session.members.delete(memberId)
      const shared = [...session.members.values()].some(other => other.link === member.link)
      if (!shared) await removeLink(member.link)
      endIfUnheld(session)
      return isHeld(session) ? undefined : session
    },
    release(lease) {
      const { session } = lease
      if (!isAlive(lease) || session?.state !== 'frozen')
        throw new Failure(
          'SOURCE_REFUSED',
          `the session is over${lease.reason ? `: ${lease.reason.message}` : ''}`,
        )
      endLease(lease, 'released')
      return session.frozen.recoveryPoint.id
    },
    recover: () =>
      exclusive(async () => {
        if (current) return 'in session'
        return (await recoverLeftover()) ? 'recovered' : 'nothing to do'
      }),
    async end(reason) {
      for (const lease of leases.values()) if (!lease.session) endLease(lease, 'ended', reason)
      if (current) await endSession(current, reason)
      await exclusive(() => Promise.resolve())
    },
    tick() {
      const now = Date.now()
      for (const lease of leases.values()) checkLease(lease, now)
      const session = current
      if (session?.state !== 'frozen') return
      for (const member of session.members.values())
        if (!member.isRunning()) void sessions.leave(member.id)
      endIfUnheld(session)
      if (now - session.frozenAt > settings.session.maxAge)
        void endSession(
          session,
          new Failure('SOURCE_REFUSED', `the session reached its limit of age`),
        )
    },
  }
  return sessions
}
