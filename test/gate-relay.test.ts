// NBD through a relay: who sees what, tickets, what a killed relay takes with it, and how much one client may have.

import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { Duplex, PassThrough } from 'node:stream'
import { setTimeout as delay } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { openRelay, relayNbd, type Relay } from '../server/gate/relay-nbd.ts'
import { askServe, connectToServe, openServeLink } from '../server/serve/client.ts'
import { openNbd, type NbdConnection } from '../shared/nbd/client.ts'
import { requires } from './nbd/requires.ts'
import { smallSource, type SmallSource } from './server/small-source.ts'

const MIB = 1024 * 1024
const WEB = randomBytes(3 * MIB)
const DB = randomBytes(2 * MIB)
const skip = requires('nbd-server', 'setpriv')

/** nbd-server knows no such export. */
const unknown = { message: /NBD_REP_ERR_UNKNOWN/ }

async function until(what: string, is: () => boolean | Promise<boolean>, seconds = 10) {
  const end = Date.now() + seconds * 1000
  while (!(await is())) {
    if (Date.now() > end) throw new Error(`not in ${seconds} s: ${what}`)
    await delay(10)
  }
}

const aSource = (t: Test): Promise<SmallSource> =>
  smallSource(t, { web: { vda: WEB, vdb: WEB }, db: { vda: DB } })

async function relayed(
  t: Test,
  { serveSocket }: SmallSource,
  client: string,
  exportName?: string,
): Promise<Relay> {
  const relay = await openRelay(serveSocket, { client, peer: '192.0.2.7', exportName })
  t.teardown(() => relay[Symbol.asyncDispose]())
  return relay
}

async function opened(
  t: Test,
  source: SmallSource,
  client: string,
  exportName: string,
  named: string | undefined = exportName,
): Promise<NbdConnection> {
  const relay = await relayed(t, source, client, named)
  return openNbd(relay.socket, { exportName })
}

/** Every byte of an export. */
async function all(disk: NbdConnection, size: number): Promise<Buffer> {
  const into = Buffer.alloc(size)
  await disk.read(0, into)
  return into
}

/** A stream that a client holds at both ends, as over ssh. */
function carried(
  t: Test,
  relay: Relay,
): { toServer: PassThrough; toClient: PassThrough; over: Promise<void> } {
  const toServer = new PassThrough()
  const toClient = new PassThrough()
  const over = relayNbd(relay, toServer, toClient).finally(() => relay[Symbol.asyncDispose]())
  t.teardown(() => toServer.destroy())
  return { toServer, toClient, over }
}

t.test('two clients: each sees and reads its own domains only', { skip }, async t => {
  const source = await aSource(t)
  await source.authorize('alice', '{ domains: [web] }')
  await source.authorize('bob', '{ domains: [db] }')

  t.strictSame(await all(await opened(t, source, 'alice', 'web/vda'), WEB.length), WEB)
  t.strictSame(await all(await opened(t, source, 'bob', 'db/vda'), DB.length), DB)
  // Without a name for the relay, as behind TLS, the client asks nbd-server itself.
  const relay = await relayed(t, source, 'bob')
  t.strictSame(await all(await openNbd(relay.socket, { exportName: 'db/vda' }), DB.length), DB)
  for (const foreign of ['web/vda', 'web', '../web/vda', ''])
    await t.rejects(
      openNbd((await relayed(t, source, 'bob')).socket, { exportName: foreign }),
      unknown,
      foreign,
    )
  // An export that the relay was told is the only one, also of the client's own.
  await t.rejects(opened(t, source, 'alice', 'web/vdb', 'web/vda'), unknown)

  await t.rejects(relayed(t, source, 'bob', 'web/vda'), {
    code: 'SOURCE_REFUSED',
    message: 'client bob may not have domain web',
  })
  await t.rejects(relayed(t, source, 'bob', 'no-such/vda'), {
    message: 'client bob may not have domain no-such',
  })
  t.match(
    source.logged.filter(({ msg }) => msg === 'connection refused'),
    [
      { client: 'bob', peer: '192.0.2.7', export: 'web/vda', reason: /may not have domain web/ },
      { client: 'bob', export: 'no-such/vda' },
    ],
    'each attempt is logged with its client and the reason',
  )
  t.match(source.domains.get('web').refusals, [{ client: 'bob', export: 'web/vda' }])
})

t.test(
  'a token is good for the client whose lease it is, and for nobody else',
  { skip },
  async t => {
    const source = await aSource(t)
    for (const client of ['alice', 'bob']) await source.authorize(client, '{ domains: all }')
    const lease = source.lease('web', 'alice')
    const name = `web/vda@${lease.token}`
    t.strictSame(await all(await opened(t, source, 'alice', name), WEB.length), WEB)
    const relay = await relayed(t, source, 'bob')
    await t.rejects(openNbd(relay.socket, { exportName: name }), unknown)
    await t.rejects(relayed(t, source, 'bob', name), {
      message: 'the session of this token is over',
    })
    t.strictSame(lease.refusals, [], 'what another client tries is none of the lease')
    await t.rejects(relayed(t, source, 'alice', `db/vda@${lease.token}`), { message: /is over/ })
    await t.rejects(relayed(t, source, 'alice', `web/vdz@${lease.token}`), {
      message: 'domain web exports no disk vdz',
    })
    t.match(lease.refusals.at(-1), { export: 'web/vdz', reason: /no disk vdz/, client: 'alice' })
    lease.state = 'ended'
    await t.rejects(relayed(t, source, 'alice', name), {
      message: 'the session of this token is over',
    })
    t.match(lease.refusals.at(-1), { export: 'web/vda', reason: /is over/ }, 'so outcome can tell')
    t.notMatch(JSON.stringify(source.logged), lease.token, 'and the log has no token')
  },
)

t.test('rights are what the file says when it is asked', { skip }, async t => {
  const source = await aSource(t)
  const refused: [yaml: string | undefined, message: RegExp][] = [
    ['{ domains: [web], verbs: [describe, digests] }', /client alice may not ask for pull here/],
    ['{ domains: [web], from: [192.0.2.8, 198.51.100.0/24] }', /may not come from 192\.0\.2\.7/],
    ['{ domains: [db] }', /may not have domain web/],
    ['{ domains: [web], shell: true }', /the rights of client alice cannot be read/],
    ['{ domains: "*" }', /cannot be read/],
    ['', /cannot be read/],
    [undefined, /client alice is not authorized here/],
  ]
  for (const [yaml, message] of refused) {
    await source.authorize('alice', yaml)
    const failure = { code: 'SOURCE_REFUSED', message }
    await t.rejects(relayed(t, source, 'alice', 'web/vda'), failure, String(yaml))
  }
  await t.rejects(relayed(t, source, '../alice', 'web/vda'), { code: 'SOURCE_UNREACHABLE' })
  await source.authorize('alice', '{ domains: [web], from: [192.0.2.0/29] }')
  t.ok(await opened(t, source, 'alice', 'web/vda'))
})

t.test('whoever can open the other socket is nobody without rights', { skip }, async t => {
  const source = await aSource(t)
  await source.authorize('alice', '{ domains: [web] }')
  const { gateSocket } = source
  const over = (client: string) =>
    openRelay(gateSocket, { client, peer: 'unix', exportName: 'web/vda' })
  await t.rejects(over('local'), { message: 'client local is not authorized here' })
  await t.rejects(over('bob'), { message: 'client bob is not authorized here' })
  await using relay = await over('alice')
  t.ok(await openNbd(relay.socket, { exportName: 'web/vda' }))
  for (const role of [{ role: 'operator' }, { role: 'hook' }] as const)
    await t.rejects(askServe(gateSocket, role, 'operator.status', {}), {
      code: 'SOURCE_UNREACHABLE',
    })
  await using local = await openRelay(source.serveSocket, { client: 'local', peer: 'unix' })
  t.ok(await openNbd(local.socket, { exportName: 'db/vda' }), 'root on its own socket needs none')
})

t.test('a ticket is good once, for ten seconds, while its relay lives', { skip }, async t => {
  const source = await aSource(t)
  await source.authorize('alice', '{ domains: [web] }')
  const { serveSocket } = source
  const role = { role: 'relay', client: 'alice', peer: '192.0.2.7' } as const
  /** Whether an NBD server answers on a ticket. */
  const answers = async (ticket: string): Promise<boolean> => {
    const socket = await connectToServe(serveSocket, { role: 'nbd', ticket })
    t.teardown(() => socket.destroy())
    const [said] = await Promise.race([once(socket, 'data'), once(socket, 'close').then(() => [])])
    return Buffer.isBuffer(said) && said.subarray(0, 8).toString() === 'NBDMAGIC'
  }
  t.notOk(await answers('0'.repeat(32)), 'a made-up one')
  {
    using link = await openServeLink(serveSocket, role)
    const { ticket } = await link.ask('relay.admit', { export: 'web/vda' })
    t.ok(await answers(ticket))
    t.notOk(await answers(ticket), 'twice')
    await t.rejects(link.ask('relay.admit', { export: 'web/vda' }), {
      message: /has had its ticket/,
    })
  }
  const { ticket: orphan } = await askServe(serveSocket, role, 'relay.admit', {})
  await until('it is worth nothing', async () => !(await answers(orphan)))
})

t.test('a role line with anything behind it never becomes an NBD connection', { skip }, async t => {
  const source = await aSource(t)
  await source.authorize('alice', '{ domains: [web] }')
  const role = { role: 'relay', client: 'alice', peer: '192.0.2.7' } as const
  using link = await openServeLink(source.serveSocket, role)
  const { ticket } = await link.ask('relay.admit', {})
  const socket = await connectToServe(source.serveSocket, { role: 'nbd', ticket })
  socket.write('NBD')
  const [said] = await Promise.race([once(socket, 'data'), once(socket, 'close').then(() => [])])
  t.equal(said, undefined)
  await until('it is logged', () =>
    source.logged.some(({ reason, error }) =>
      /before its server/.test(JSON.stringify([reason, error])),
    ),
  )
  for (const line of [
    '{"role":"nbd"}',
    '{"role":"nbd","ticket":"../x"}',
    '{"role":"shell"}',
    '[]',
    'x'.repeat(2000),
  ]) {
    const other = await connectToServe(source.serveSocket, line as never)
    other.resume()
    await once(other, 'close')
  }
})

t.test('a killed relay ends nothing but its own stream', { skip }, async t => {
  const source = await aSource(t)
  await source.authorize('alice', '{ domains: [web] }')
  const [one, other] = await Promise.all([
    relayed(t, source, 'alice', 'web/vda'),
    relayed(t, source, 'alice', 'web/vda'),
  ])
  const killed = await openNbd(one.socket, { exportName: 'web/vda' })
  const spared = await openNbd(other.socket, { exportName: 'web/vda' })
  await until('both read', () => source.members.size === 2)
  await one[Symbol.asyncDispose]()
  await t.rejects(killed.read(0, Buffer.alloc(MIB)))
  await until('only its own is gone', () => source.members.size === 1)
  t.strictSame(await all(spared, WEB.length), WEB)
})

t.test('bytes go both ways until either side ends it', { skip }, async t => {
  const source = await aSource(t)
  await source.authorize('alice', '{ domains: [web] }')
  const { toServer, toClient, over } = carried(t, await relayed(t, source, 'alice', 'web/vda'))
  const early = Buffer.alloc(4)
  early.writeUInt32BE(3)
  // Sent before the server has spoken; it is kept back until then.
  toServer.write(early)
  const greeting: Buffer[] = []
  toClient.on('data', (part: Buffer) => greeting.push(part))
  await until('the server has greeted', () => Buffer.concat(greeting).length >= 18)
  const abort = Buffer.alloc(16)
  abort.write('IHAVEOPT')
  abort.writeUInt32BE(2, 8)
  toServer.write(abort)
  await over
  t.equal(Buffer.concat(greeting).subarray(0, 16).toString(), 'NBDMAGICIHAVEOPT')

  const second = carried(t, await relayed(t, source, 'alice', 'web/vda'))
  second.toServer.end()
  await second.over
  await until('nothing is left', () => source.members.size === 0)
})

t.test('a client that never reads holds up only itself', { skip }, async t => {
  const source = await aSource(t)
  await source.authorize('alice', '{ domains: [web] }')
  const relay = await relayed(t, source, 'alice', 'web/vda')
  const { toServer, toClient } = carried(t, relay)
  const request = Buffer.alloc(28)
  request.writeUInt32BE(0x25609513)
  request.writeUInt32BE(MIB, 24)
  const go = Buffer.concat([
    Buffer.from('IHAVEOPT'),
    Buffer.from([0, 0, 0, 7, 0, 0, 0, 13, 0, 0, 0, 7]),
    Buffer.from('web/vda'),
    Buffer.from([0, 0]),
  ])
  toServer.write(Buffer.concat([Buffer.from([0, 0, 0, 3]), go]))
  for (let at = 0; at < 200; at++) toServer.write(request)
  await until('it serves', () => source.members.size === 1)
  await delay(200)
  t.ok(toClient.readableLength + relay.socket.readableLength < MIB, 'what is not read is not kept')
  t.strictSame(await all(await opened(t, source, 'alice', 'web/vda'), WEB.length), WEB)
})

t.test(
  'a thousand relays at once: one client gets its share, the next one its own',
  { skip },
  async t => {
    const source = await aSource(t)
    await source.authorize('alice', '{ domains: [web] }')
    await source.authorize('bob', '{ domains: [db] }')
    const tries = Array.from({ length: 1000 }, () => relayed(t, source, 'alice', 'web/vda'))
    const tried = await Promise.allSettled(tries)
    const got = tried.flatMap(one => (one.status === 'fulfilled' ? [one.value] : []))
    t.equal(got.length, 48)
    const reasons = tried.flatMap(one => (one.status === 'rejected' ? [String(one.reason)] : []))
    t.strictSame([...new Set(reasons)], ['Failure: client alice has 48 relays open already'])
    t.strictSame(await all(await opened(t, source, 'bob', 'db/vda'), DB.length), DB)
    for (const relay of got) await relay[Symbol.asyncDispose]()
    await until('there is room again', async () => {
      const again = await relayed(t, source, 'alice', 'web/vda').catch(() => undefined)
      return again !== undefined
    })
  },
)

t.test(
  "a client's bandwidth is for all of its streams together, and nobody else's",
  { skip },
  async t => {
    const source = await aSource(t)
    await source.authorize('alice', '{ domains: [web], bandwidth: 2MiB/s }')
    await source.authorize('bob', '{ domains: [db] }')
    const streams = await Promise.all(
      ['web/vda', 'web/vdb'].map(async name => {
        const relay = await relayed(t, source, 'alice', name)
        const { toServer, toClient } = carried(t, relay)
        return openNbd(Duplex.from({ readable: toClient, writable: toServer }), {
          exportName: name,
        })
      }),
    )
    const start = performance.now()
    const bytes = await Promise.all(streams.map(disk => all(disk, WEB.length)))
    const seconds = (performance.now() - start) / 1000
    t.strictSame(bytes, [WEB, WEB])
    // 6 MiB at 2 MiB/s, of which a burst of a quarter of a second may go at once, and the last piece.
    t.ok(seconds > 2.5, `${seconds} s`)
    const his = await relayed(t, source, 'bob', 'db/vda')
    const before = performance.now()
    for (let at = 0; at < 64; at++) await his.take(MIB)
    t.ok(performance.now() - before < 1000, 'one without a limit is not even asked about')
  },
)
