// What an operator on the source asks of serve: status, holding a session by hand, recovery.

import { Failure, toFailure } from '../../shared/failures.ts'
import {
  isOpen,
  journaledDomains,
  lastStep,
  readJournal,
  type Journal,
} from '../session/journal.ts'
import type { DomainSessions } from '../session/domain.ts'
import type { Session } from '../session/session.ts'
import { allocatedBytes } from '../session/watchdog.ts'
import type { Source } from '../source.ts'
import type { Domains } from './domains.ts'
import type { Handlers } from './handle.ts'
import type { DomainStatus, LastSession } from './words.ts'

export function operatorHandlers(source: Source, domains: Domains): Handlers {
  return {
    async 'operator.status'() {
      const listed = await Promise.all(domains.all().map(one => statusOf(source, one)))
      return { domains: [...listed, ...(await unlistedOf(source, domains))] }
    },
    async 'operator.hold'({ domain }) {
      const lease = await domains.get(domain).hold('operator')
      const frozen = lease.session?.frozen
      if (!frozen) throw new Failure('INTERNAL', 'a held lease without a session')
      return {
        recoveryPoint: frozen.recoveryPoint.id,
        disks: frozen.disks.map(({ target, base }) => ({ target, base })),
      }
    },
    async 'operator.letGo'({ domain }) {
      const sessions = domains.get(domain)
      const session = sessions.current()
      const held = sessions
        .leases()
        .filter(lease => lease.kind === 'operator' && lease.state === 'live')
      if (session?.state === 'merging') await session.over
      // Who held it by hand has nobody else to be told by that what was copied is not one instant.
      const ended = sessions
        .leases()
        .find(lease => lease.kind === 'operator' && lease.state === 'ended')
      if (held.length === 0 && ended?.reason) {
        ended.state = 'released'
        throw ended.reason
      }
      if (!session || held.length === 0) return { state: 'not held', disks: [] }
      for (const lease of held) await sessions.release(lease)
      if (session.state === 'frozen') return { state: 'kept', disks: [] }
      await session.over
      if (session.failure) throw session.failure
      return { state: 'merged', disks: [...session.settled] }
    },
    async 'operator.recover'({ domain, mergeOverlays }) {
      return { result: await domains.recover(domain, mergeOverlays) }
    },
  }
}

async function statusOf(source: Source, sessions: DomainSessions): Promise<DomainStatus> {
  const { domain, refusals } = sessions
  const session = sessions.current()
  const ended = sessions.last()
  const last = ended && lastOf(ended)
  if (session) return { ...(await statusOfSession(source, session)), ...known({ last }), refusals }
  return statusOfJournal(source, domain, last, refusals)
}

/** Domains that source.yaml no longer lists, with a journal that is still open. */
async function unlistedOf(source: Source, domains: Domains): Promise<DomainStatus[]> {
  const listed = domains.all().map(one => one.domain)
  const names = (await journaledDomains(source.paths.journals)).filter(one => !listed.includes(one))
  const each = await Promise.all(names.map(one => statusOfJournal(source, one, undefined, [])))
  return each.filter(one => one.state !== 'idle')
}

/** What is known of a domain that has no session. */
async function statusOfJournal(
  source: Source,
  domain: string,
  last: LastSession | undefined,
  refusals: DomainStatus['refusals'],
): Promise<DomainStatus> {
  const quiet = { domain, holders: [], connections: 0, members: [], disks: [], refusals }
  let journal: Journal | undefined
  try {
    journal = await readJournal(source.paths.journals, domain)
  } catch (error) {
    const { message: reason, remedy } = toFailure(error)
    return { ...quiet, state: 'needs operator', ...known({ last, remedy }), reason }
  }
  if (!journal) return { ...quiet, state: 'idle' }
  const entry = journal.entries.at(-1)
  if (isOpen(journal))
    return {
      ...quiet,
      state: entry?.step === 'needs operator' ? 'needs operator' : 'unsettled',
      recoveryPoint: journal.intent.recoveryPoint,
      ageMs: Math.max(0, Date.now() - Date.parse(journal.intent.instant)),
      disks: await Promise.all(journal.intent.disks.map(withOverlaySize)),
      ...known({ last, reason: entry?.reason ?? last?.failure, remedy: entry?.remedy }),
    }
  return { ...quiet, state: 'idle', last: lastOfJournal(journal, last) }
}

/** The journal outlives serve and knows of recoveries; the reasons are only in memory. */
function lastOfJournal(journal: Journal, remembered: LastSession | undefined): LastSession {
  const { recoveryPoint, at } = journal.intent
  const same = remembered?.recoveryPoint === recoveryPoint ? remembered : undefined
  if (same?.state === 'merged') return same
  const disks = journal.entries
    .filter(one => one.step === 'clean')
    .map(one => ({
      target: one.target ?? '',
      mergeMs: one.mergeMs ?? 0,
      overlayBytes: one.overlayBytes ?? 0,
    }))
  const done = { recoveryPoint, at: journal.entries.at(-1)?.at ?? at, disks }
  return { ...same, ...done, state: 'merged' as const, failure: undefined }
}

function lastOf(session: Session): LastSession {
  const { frozen, reason, failure, settled, overAt } = session
  return {
    recoveryPoint: frozen.recoveryPoint.id,
    at: new Date(overAt ?? Date.now()).toISOString(),
    state: failure ? 'failed' : 'merged',
    ...known({ reason: reason?.message, code: reason?.code, remedy: reason?.remedy }),
    ...known({ failure: failure?.message }),
    consistency: frozen.recoveryPoint.consistency,
    freezeMs: frozen.info.freezeMs,
    snapshotMs: frozen.info.snapshotMs,
    disks: [...settled],
  }
}

/** A merge that takes long is said. */
async function alarmOf(source: Source, { domain }: Session): Promise<string | undefined> {
  const journal = await readJournal(source.paths.journals, domain).catch(() => undefined)
  return journal && lastStep(journal, 'alarm')?.reason
}

async function statusOfSession(
  source: Source,
  session: Session,
): Promise<Omit<DomainStatus, 'refusals'>> {
  const { recoveryPoint, info, off } = session.frozen
  const disks = off ? [] : session.frozen.disks
  const alarm = session.state === 'merging' ? await alarmOf(source, session) : undefined
  const members = [...session.members.values()]
  const leases = [...session.leases]
  const clientOf = (token: string | undefined): string | undefined =>
    leases.find(lease => lease.token === token)?.client
  return {
    domain: session.domain,
    state: session.state === 'frozen' ? 'frozen' : 'merging',
    recoveryPoint: recoveryPoint.id,
    consistency: recoveryPoint.consistency,
    ageMs: Date.now() - session.frozenAt,
    holders: [
      ...leases.map(({ kind, client }) => ({ kind, client })),
      ...members
        .filter(member => member.token === undefined)
        .map(member => ({ kind: 'connection' as const, client: member.target })),
    ],
    connections: members.length,
    members: members.map(member => ({
      ...known({ client: member.client ?? clientOf(member.token) }),
      target: member.target,
      peer: member.peer,
      bytes: member.moved(),
    })),
    hashed: session.hasher.hashed(),
    freezeMs: info.freezeMs,
    snapshotMs: info.snapshotMs,
    disks: await Promise.all(disks.map(withOverlaySize)),
    ...known({ reason: alarm ?? session.reason?.message }),
  }
}

async function withOverlaySize(disk: {
  readonly target: string
  readonly base: string
  readonly overlay: string
}): Promise<DomainStatus['disks'][number]> {
  const { target, base, overlay } = disk
  return { target, base, overlay, overlayBytes: await allocatedBytes(overlay) }
}

/** The fields that have a value. */
function known<T extends object>(fields: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as {
    [K in keyof T]?: Exclude<T[K], undefined>
  }
}
