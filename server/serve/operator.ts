// What an operator on the source asks of serve: status, holding a session by hand, recovery.

import { stat } from 'node:fs/promises'
import { Failure, toFailure } from '../../shared/failures.ts'
import { isOpen, readJournal, type Journal } from '../session/journal.ts'
import type { DomainSessions } from '../session/domain.ts'
import type { Session } from '../session/session.ts'
import type { Source } from '../source.ts'
import type { Domains } from './domains.ts'
import type { Handlers } from './handle.ts'
import type { DomainStatus } from './words.ts'

export function operatorHandlers(source: Source, domains: Domains): Handlers {
  return {
    async 'operator.status'() {
      return { domains: await Promise.all(domains.all().map(one => statusOf(source, one))) }
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
      if (!session || held.length === 0) return { state: 'not held', disks: [] }
      for (const lease of held) sessions.release(lease)
      if (session.state === 'frozen') return { state: 'kept', disks: [] }
      await session.over
      if (session.failure) throw session.failure
      return { state: 'merged', disks: [...session.settled] }
    },
    async 'operator.recover'({ domain }) {
      return { result: await domains.recover(domain) }
    },
  }
}

async function statusOf(source: Source, sessions: DomainSessions): Promise<DomainStatus> {
  const { domain } = sessions
  const session = sessions.current()
  if (session) return statusOfSession(session)
  const quiet = { domain, holders: [], connections: 0, disks: [] }
  let journal: Journal | undefined
  try {
    journal = await readJournal(source.paths.journals, domain)
  } catch (error) {
    return { ...quiet, state: 'needs operator', reason: toFailure(error).message }
  }
  if (!journal) return { ...quiet, state: 'idle' }
  const entry = journal.entries.at(-1)
  if (isOpen(journal))
    return {
      ...quiet,
      state: entry?.step === 'needs operator' ? 'needs operator' : 'unsettled',
      recoveryPoint: journal.intent.recoveryPoint,
      disks: await Promise.all(journal.intent.disks.map(withOverlaySize)),
      ...(entry?.reason === undefined ? {} : { reason: entry.reason }),
    }
  const disks = journal.entries
    .filter(one => one.step === 'clean')
    .map(one => ({
      target: one.target ?? '',
      mergeMs: one.mergeMs ?? 0,
      overlayBytes: one.overlayBytes ?? 0,
    }))
  return {
    ...quiet,
    state: 'idle',
    last: {
      recoveryPoint: journal.intent.recoveryPoint,
      at: entry?.at ?? journal.intent.at,
      disks,
    },
  }
}

async function statusOfSession(session: Session): Promise<DomainStatus> {
  const { recoveryPoint, disks } = session.frozen
  const bare = [...session.members.values()].filter(member => member.token === undefined)
  return {
    domain: session.domain,
    state: session.state === 'frozen' ? 'frozen' : 'merging',
    recoveryPoint: recoveryPoint.id,
    consistency: recoveryPoint.consistency,
    ageMs: Date.now() - session.frozenAt,
    holders: [
      ...[...session.leases].map(({ kind, client }) => ({ kind, client })),
      ...bare.map(member => ({ kind: 'connection' as const, client: member.target })),
    ],
    connections: session.members.size,
    disks: await Promise.all(disks.map(withOverlaySize)),
  }
}

async function withOverlaySize(disk: {
  readonly target: string
  readonly base: string
  readonly overlay: string
}): Promise<DomainStatus['disks'][number]> {
  const { target, base, overlay } = disk
  const found = await stat(overlay).catch(() => undefined)
  return { target, base, overlay, overlayBytes: (found?.blocks ?? 0) * 512 }
}
