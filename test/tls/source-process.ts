// A source without libvirt: the control socket, relays, rights, connections, hooks and the TLS listener of the product, and in
// place of sessions a link to an image. Runs as built, because nbd-server starts the product's hooks.

import { mkdirSync } from 'node:fs'
import { createServer, type AddressInfo } from 'node:net'
import { pino } from 'pino'
import { readSourceConfig } from '../../server/config/schema.ts'
import { attachRoles } from '../../server/serve/attach.ts'
import { createConnections } from '../../server/serve/connections.ts'
import type { Domains } from '../../server/serve/domains.ts'
import { createRelays } from '../../server/serve/relays.ts'
import { controlServer, ROLES } from '../../server/serve/socket.ts'
import { createVisits } from '../../server/serve/visits.ts'
import { createLease, type Lease } from '../../server/session/lease.ts'
import { makeLink } from '../../server/session/links.ts'
import type { Member } from '../../server/session/session.ts'
import { createSource } from '../../server/source.ts'
import { listenTls } from '../../server/tls/listener.ts'
import { Failure } from '../../shared/failures.ts'
import { TOKEN } from './token.ts'

const [config = '', images = ''] = process.argv.slice(2)
const log = pino({ level: 'debug' }, pino.destination({ fd: 2, sync: true }))
const source = createSource(readSourceConfig(config), config, log)
const { paths } = source
for (const directory of [paths.connections, paths.exports])
  mkdirSync(directory, { recursive: true })

/** A pull of standby1's that may connect. */
const lease = (domain: string): Lease => ({
  ...createLease(domain, 'standby1', 'gate'),
  token: TOKEN,
})
const each = Object.keys(source.config.domains).map(domain => ({
  domain,
  leases: () => [lease(domain)],
  refusals: [],
  admit: ({ link }: Member) => makeLink(link, `${images}/${domain}.raw`),
  leave: () => Promise.resolve(undefined),
  endLeases: () => 0,
}))
const domains = {
  all: () => each,
  get(domain: string) {
    const found = each.find(one => one.domain === domain)
    if (found) return found
    throw new Failure('SOURCE_REFUSED', `domain ${domain} is not exported by this source`)
  },
  targets: () => Promise.resolve(['vda']),
  findLease: (token: string) =>
    token === TOKEN && each.length === 1 && each[0] ? lease(each[0].domain) : undefined,
} as unknown as Domains

const connections = createConnections(source, domains)
const relays = createRelays(log, domains, connections)
const serving = { source, domains, connections, relays, visits: createVisits(), hostId: 'test' }
const control = controlServer(log, ROLES, attachRoles(serving, true))
await new Promise<void>(resolve => control.listen(paths.serveSocket, resolve))

if (!paths.tls) throw new Error('no listen.tls')
const tls = await listenTls(paths.serveSocket, paths.tls, log)
await new Promise<void>(resolve => tls.server.listen(0, '127.0.0.1', resolve))
const { port } = tls.server.address() as AddressInfo

// The test asks for the counts by a connection of its own.
const counts = createServer(socket => void socket.end(JSON.stringify(tls.counts())))
await new Promise<void>(resolve => counts.listen(`${paths.serveSocket}.counts`, resolve))
process.stdout.write(`${port}\n`)

process.once('SIGTERM', () => {
  void tls
    .closeAll()
    .then(() => connections.closeAll())
    .then(() => process.exit())
})
