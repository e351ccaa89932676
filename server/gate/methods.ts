// The gate's methods, for one client.

import { setMaxListeners } from 'node:events'
import { setTimeout as delay } from 'node:timers/promises'
import type { MessageConnection } from 'vscode-jsonrpc/node.js'
import { Failure, toFailure } from '../../shared/failures.ts'
import { FEATURES, SESSION_ENDED, type GateResult, type Outcome } from '../../shared/gate.ts'
import { agree, PROTOCOLS } from '../../shared/protocol.ts'
import { VERSION } from '../../shared/version.ts'
import type { Verb } from '../clients/rights.ts'
import type { Visitor } from '../clients/visitor.ts'
import { domainSettings } from '../config/schema.ts'
import { exportability } from '../libvirt/domain-xml.ts'
import { isAlive, overFailure, type Lease } from '../session/lease.ts'
import { exportedSize } from '../session/images.ts'
import { handle, type Handlers } from '../serve/handle.ts'
import type { Domains } from '../serve/domains.ts'
import { allocatedBytes } from '../session/watchdog.ts'
import type { Source } from '../source.ts'
import { acknowledged } from '../tracking/tracking.ts'
import { readStorageNodes } from '../tracking/bitmaps.ts'
import { frozenDigests } from './digests.ts'
import { frozenAllocation, frozenChanges } from './extents.ts'

/** @param hostId this source's identity, to which clones are bound */
export function serveGate(
  connection: MessageConnection,
  visitor: Visitor,
  source: Source,
  domains: Domains,
  hostId: string,
): void {
  const { client } = visitor
  const log = source.log.child({ client, peer: visitor.peer })

  const kept = new Set<Lease>()
  let cloneName: string | undefined
  const gone = new AbortController()
  setMaxListeners(0, gone.signal)
  connection.onClose(() => {
    gone.abort(new Failure('SOURCE_REFUSED', 'the client went away'))
    for (const lease of kept) {
      if (lease.gate !== connection) continue
      // Nobody is there to be told. Who does not come back in time lapses, with or without a session.
      lease.gate = undefined
      lease.gateLostAt = Date.now()
      lease.notify = () => undefined
    }
  })

  /** The lease lives with this connection from now on. */
  function keep(lease: Lease): void {
    kept.add(lease)
    lease.gate = connection
    lease.notify = reason => {
      const remedy = reason.remedy === undefined ? {} : { remedy: reason.remedy }
      const ended = { token: lease.token, reason: reason.message, code: reason.code, ...remedy }
      connection.sendNotification(SESSION_ENDED, ended).catch(() => undefined)
    }
  }

  function leaseOf(token: string): Lease {
    const lease = domains.findLease(token)
    if (lease?.client === client) return lease
    throw new Failure(
      'SOURCE_REFUSED',
      'the source does not know this token: its serve was restarted, or the session is long over',
    )
  }

  /** Every method asks anew, so that rights that were taken away are gone at once. @throws Failure SOURCE_REFUSED */
  async function may(verb: Verb, domain: string): Promise<void> {
    try {
      await visitor.may(verb, domain)
    } catch (error) {
      log.warn({ domain, verb, reason: toFailure(error).message }, 'gate refused')
      throw error
    }
    gone.signal.throwIfAborted()
  }

  const handlers: Handlers = {
    async hello({ protocol, version, clone }) {
      const agreed = agree({ ...PROTOCOLS, version: VERSION }, { ...protocol, version })
      const { verbs } = await visitor.rights().catch((error: unknown) => {
        log.warn({ reason: toFailure(error).message }, 'gate refused')
        throw error
      })
      cloneName = clone?.name
      log.info({ version, clone: cloneName }, 'hello')
      return {
        protocol: agreed,
        version: VERSION,
        clockMs: Date.now(),
        hostId,
        role: 'source',
        epoch: 0,
        // Who may not ask for digests does without what must be audited by them.
        features: verbs.includes('digests') ? Object.values(FEATURES) : [FEATURES.allocation],
      }
    },
    async describe({ domain }) {
      await may('describe', domain)
      return describe(source, domains, domain)
    },
    async 'session.open'({ domain, want }) {
      await may('pull', domain)
      const { lease, joined } = domains.get(domain).open(client, want.tracking === true)
      keep(lease)
      log.info({ domain, joined }, 'session reserved')
      return { token: lease.token, session: lease.token.slice(0, 8), joined }
    },
    async 'session.renew'({ token }) {
      const lease = leaseOf(token)
      await may('pull', lease.domain)
      if (!isAlive(lease)) throw lease.reason ?? overFailure(lease)
      lease.renewedAt = Date.now()
      keep(lease)
      return {}
    },
    async 'session.info'({ token }) {
      const lease = leaseOf(token)
      await may('pull', lease.domain)
      const { session } = lease
      if (!session)
        throw new Failure(
          'SOURCE_REFUSED',
          'the session has not begun: no connection used its token yet',
        )
      return session.frozen.info
    },
    async 'session.release'({ token }) {
      const lease = leaseOf(token)
      await may('pull', lease.domain)
      return { recoveryPoint: await domains.get(lease.domain).release(lease) }
    },
    async digests({ token, ...asked }) {
      const lease = leaseOf(token)
      await may('digests', lease.domain)
      return { digests: await frozenDigests(lease, asked, gone.signal) }
    },
    async allocation({ token, ...asked }) {
      const lease = leaseOf(token)
      await may('pull', lease.domain)
      return frozenAllocation(lease, asked)
    },
    async changes({ token, ...asked }) {
      const lease = leaseOf(token)
      await may('pull', lease.domain)
      return frozenChanges(lease, asked)
    },
    async acknowledge({ domain, recoveryPoint }) {
      await may('pull', domain)
      domains.get(domain)
      log.info(
        { domain, recoveryPoint },
        'acknowledged: the client holds this recovery point, verified',
      )
      // A client may have several clones of one domain, each at its own recovery point.
      const holder = cloneName === undefined ? client : `${client}/${cloneName}`
      await acknowledged(source, domain, holder, recoveryPoint)
      return {}
    },
    async outcome({ token, waitMs }) {
      const lease = leaseOf(token)
      await may('pull', lease.domain)
      const { session } = lease
      if (session?.state === 'merging')
        await Promise.race([session.over, delay(waitMs, undefined, { ref: false })])
      return outcomeOf(lease)
    },
  }
  handle(connection, handlers)
}

function outcomeOf(lease: Lease): Outcome {
  const { session, refusals, reason } = lease
  const shared = { disks: [...(session?.settled ?? [])], refusals: [...refusals] }
  const why = session?.failure ?? session?.reason ?? reason
  const because =
    why === undefined
      ? {}
      : {
          reason: why.message,
          code: why.code,
          ...(why.remedy === undefined ? {} : { remedy: why.remedy }),
        }
  if (!session) return { state: 'reserved', ...shared, ...because }
  const state = session.state === 'frozen' && !isAlive(lease) ? 'kept' : session.state
  return { state, ...shared, ...because }
}

async function describe(
  source: Source,
  domains: Domains,
  domain: string,
): Promise<GateResult<'describe'>> {
  domains.get(domain)
  const settings = domainSettings(source.config, domain)
  const [read, state] = await Promise.all([
    domains.xml(domain),
    source.virsh.text(['domstate', '--domain', domain]),
  ])
  // What is recorded tells a dry run what a pull would read; without it, that is not known.
  const nodes = settings.tracking
    ? await readStorageNodes(source.virsh.monitor(domain)).catch(() => [])
    : []
  const disks = read.disks.map(async disk => {
    const verdict = exportability(domain, disk, settings.disks[disk.target]?.exclude === true)
    if (verdict.kind !== 'export')
      return { target: disk.target, exported: false, reason: verdict.reason }
    const baseType = disk.type === 'block' ? ('block' as const) : ('file' as const)
    const size = await exportedSize({ base: verdict.base, baseType })
    // A device has all of its bytes; a file has no more than it would without holes.
    const allocated =
      baseType === 'block' ? size : Math.min(size, await allocatedBytes(verdict.base))
    const points = nodes.find(({ file }) => file === verdict.base)?.points ?? []
    const tracked = [...points].map(([recoveryPoint, bytes]) => ({ recoveryPoint, bytes }))
    const { target } = disk
    return { target, exported: true, format: verdict.format, size, allocated, tracked }
  })
  return { domain, uuid: read.uuid, state: state.trim(), disks: await Promise.all(disks) }
}
