// A source for tests of who is let in: serve's real control socket, connections and relays, and the real nbd-server with
// the real hooks; only the domains behind them are images that need no libvirt.

import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import type { Server, Socket } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { pino } from 'pino'
import { parseConfig } from '../../shared/config.ts'
import { Failure } from '../../shared/failures.ts'
import { sourceSchema } from '../../server/config/schema.ts'
import { attachRoles } from '../../server/serve/attach.ts'
import { createConnections } from '../../server/serve/connections.ts'
import type { Domains } from '../../server/serve/domains.ts'
import { createRelays } from '../../server/serve/relays.ts'
import { controlServer, GATE_ROLES, ROLES } from '../../server/serve/socket.ts'
import { createVisits } from '../../server/serve/visits.ts'
import type { DomainSessions } from '../../server/session/domain.ts'
import { createLease, isAlive, overFailure, type Lease } from '../../server/session/lease.ts'
import { makeLink, removeLink } from '../../server/session/links.ts'
import type { Member } from '../../server/session/session.ts'
import { createSource } from '../../server/source.ts'

const HOST_ID = '6b0f2d7e-3b57-4c83-9e0c-2f1f0f4b6a01'

/** Log lines as they were written. */
export interface Logged {
  readonly msg: string
  readonly client?: string
  readonly reason?: string
  readonly [field: string]: unknown
}

export interface SmallSource {
  readonly dir: string
  readonly configFile: string
  readonly serveSocket: string
  /** As by root's own socket, and as by one that others may open. */
  readonly gateSocket: string
  readonly logged: Logged[]
  readonly domains: Domains
  /** Connections that read now, of all domains. */
  readonly members: Set<Member>
  /** Rights of a client, as YAML; undefined takes them away. */
  authorize(client: string, yaml: string | undefined): Promise<void>
  /** A lease as the gate gives it. */
  lease(domain: string, client: string): Lease
  /** A server for gates that do not run as root; not listening yet. */
  gateServer(): Server
  /** Called every second in serve. */
  tick(): void
}

interface TestLike {
  teardown(step: () => unknown): void
}

/** @param disks domain -> target -> content */
export async function smallSource(
  t: TestLike,
  disks: Readonly<Record<string, Readonly<Record<string, Buffer>>>>,
): Promise<SmallSource> {
  // A socket's path may have 107 bytes, fewer than a fixture's directory.
  const dir = await mkdtemp(path.join(tmpdir(), 'nbd-clone-test-'))
  t.teardown(() => rm(dir, { recursive: true, force: true }))
  const configFile = path.join(dir, 'source.yaml')
  const names = Object.keys(disks)
  const yaml = `{ runDir: ${dir}, stateDir: ${dir}, domains: { ${names.map(name => `${name}: {}`).join(', ')} } }`
  await writeFile(configFile, yaml)
  await mkdir(path.join(dir, 'clients'))
  const logged: Logged[] = []
  const write = (line: string): void => void logged.push(JSON.parse(line) as Logged)
  const source = createSource(
    parseConfig(configFile, yaml, sourceSchema),
    configFile,
    pino({ level: 'debug' }, { write }),
  )

  const members = new Set<Member>()
  const sessions = new Map<string, DomainSessions>()
  for (const [domain, images] of Object.entries(disks)) {
    for (const [target, content] of Object.entries(images))
      await writeFile(path.join(dir, `${domain}-${target}.raw`), content)
    sessions.set(domain, fakeSessions(dir, domain, members))
  }
  const domains = fakeDomains(disks, sessions)
  const connections = createConnections(source, domains)
  const relays = createRelays(source.log, domains, connections)
  const serving = {
    ...{ source, domains, connections, relays },
    ...{ visits: createVisits(), hostId: HOST_ID },
  }
  const { serveSocket } = source.paths
  const gateSocket = path.join(dir, 'gate.sock')
  await listen(t, controlServer(source.log, ROLES, attachRoles(serving, true)), serveSocket)
  await listen(t, controlServer(source.log, GATE_ROLES, attachRoles(serving, false)), gateSocket)
  t.teardown(() => connections.closeAll())
  return {
    ...{ dir, configFile, serveSocket, gateSocket, logged, domains, members },
    async authorize(client, rights) {
      const file = path.join(dir, 'clients', `${client}.yaml`)
      if (rights === undefined) await rm(file)
      else await writeFile(file, rights)
    },
    lease: (domain, client) => domains.get(domain).open(client).lease,
    gateServer: () => controlServer(source.log, GATE_ROLES, attachRoles(serving, false)),
    tick: () => connections.tick(),
  }
}

/** Every session is on, for whoever comes; what it is asked for is what serve's own would do. */
function fakeSessions(dir: string, domain: string, members: Set<Member>): DomainSessions {
  const leases: Lease[] = []
  const living = (client: string): Lease[] =>
    leases.filter(lease => lease.client === client && isAlive(lease))
  return {
    domain,
    refusals: [],
    leases: () => leases,
    current: () => undefined,
    open(client: string) {
      const lease = createLease(domain, client, 'gate')
      leases.push(lease)
      return { lease, joined: false }
    },
    async admit(member: Member) {
      const lease = leases.find(one => one.token === member.token)
      if (member.token !== undefined && !(lease && isAlive(lease))) throw overFailure(lease)
      members.add(member)
      await makeLink(member.link, path.join(dir, `${domain}-${member.target}.raw`))
    },
    async leave(id: string) {
      const member = [...members].find(one => one.id === id)
      if (!member) return undefined
      members.delete(member)
      await removeLink(member.link)
      return undefined
    },
    endLeases(client: string, reason: Failure) {
      const own = living(client)
      for (const lease of own) {
        lease.state = 'ended'
        lease.reason = reason
        lease.notify(reason)
      }
      return own.length
    },
  } as unknown as DomainSessions
}

function fakeDomains(
  disks: Readonly<Record<string, Readonly<Record<string, Buffer>>>>,
  sessions: ReadonlyMap<string, DomainSessions>,
): Domains {
  return {
    get(domain: string) {
      const found = sessions.get(domain)
      if (found) return found
      throw new Failure('SOURCE_REFUSED', `domain ${domain} is not exported by this source`)
    },
    all: () => [...sessions.values()],
    targets: (domain: string) => Promise.resolve(Object.keys(disks[domain] ?? {})),
    findLease: (token: string) =>
      [...sessions.values()]
        .flatMap(one => one.leases())
        .find((lease: Lease) => lease.token === token),
  } as unknown as Domains
}

async function listen(t: TestLike, server: Server, address: string): Promise<void> {
  const open = new Set<Socket>()
  server.on('connection', socket => {
    open.add(socket)
    socket.once('close', () => open.delete(socket))
  })
  await new Promise<void>(resolve => server.listen(address, resolve))
  t.teardown(() => {
    for (const socket of open) socket.destroy()
    server.close()
  })
}
