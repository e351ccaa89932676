// Clients of the gate: each has what its rights say and no more, and loses at once what they do not say any more.

import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, statSync } from 'node:fs'
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { readGateCommand } from '../server/gate/command.ts'
import { connectToServe, openServeLink, type ServeLink } from '../server/serve/client.ts'
import { authorize, authorizeNotes } from '../server/commands/authorize.ts'
import { revoke } from '../server/commands/revoke.ts'
import { readSourceConfig } from '../server/config/schema.ts'
import { listenForGates } from '../server/serve/gate-socket.ts'
import { Cleanup } from '../shared/cleanup.ts'
import { tlsFolder } from '../server/tls/paths.ts'
import { openRelay } from '../server/gate/relay-nbd.ts'
import { parseExportName } from '../shared/names.ts'
import { openNbd } from '../shared/nbd/client.ts'
import { rpcConnection } from '../shared/rpc.ts'
import { requires } from './nbd/requires.ts'
import { smallSource, type SmallSource } from './server/small-source.ts'

const DISK = Buffer.alloc(1024 * 1024, 'data')
const TOKEN = 'a'.repeat(32)
const HELLO = { protocol: { min: 1, max: 1 }, version: '0', clockMs: 0 }

const isRoot = process.getuid?.() === 0

async function until(what: string, is: () => boolean | Promise<boolean>, seconds = 20) {
  const end = Date.now() + seconds * 1000
  while (!(await is())) {
    if (Date.now() > end) throw new Error(`not in ${seconds} s: ${what}`)
    await delay(10)
  }
}

const aSource = (t: Test): Promise<SmallSource> =>
  smallSource(t, { web: { vda: DISK }, db: { vda: DISK } })

async function gate(t: Test, { serveSocket }: SmallSource, client: string, peer?: string) {
  const role = { role: 'gate' as const, client, ...(peer === undefined ? {} : { peer }) }
  const link: ServeLink = await openServeLink(serveSocket, role)
  t.teardown(() => link[Symbol.dispose]())
  return link
}

t.test('a forced command takes gate, or nbd and one export, and nothing else', async t => {
  for (const original of [undefined, 'gate', 'clone-server gate'])
    t.strictSame(readGateCommand(original), { kind: 'gate' }, String(original))
  for (const name of ['web/vda', `web/vda@${TOKEN}`, 'my.dom+1:x@y/vda', `a/b@c@${TOKEN}`])
    t.strictSame(readGateCommand(`nbd ${name}`), { kind: 'nbd', exportName: name })
  for (const original of [
    ...[
      '',
      ' ',
      'gate ',
      ' gate',
      'GATE',
      'gate --client other',
      'gate\n',
      'gate;sh',
      'sh',
      'bash -i',
    ],
    ...['clone-server gate --client x', 'clone-server status', 'clone-server  gate', 'scp -t /etc'],
    ...['nbd', 'nbd ', 'nbd web', 'nbd web/', 'nbd /vda', 'nbd web/vda/x', 'nbd  web/vda'],
    ...[
      'nbd web/vda ',
      'nbd web/vda\n',
      'nbd web/vda;id',
      'nbd web/vda --config x',
      'nbd $(id)/vda',
    ],
    ...[
      'nbd ../web/vda',
      'nbd ../../etc',
      'nbd ../vda',
      'nbd web/..',
      'nbd --help/vda',
      'nbd -x/vda',
    ],
    ...['nbd web/-x', `nbd web/@${TOKEN}`, 'nbd wéb/vda', `nbd ${'x'.repeat(101)}/a`],
    ...['nbd web\0/vda', 'nbd "web"/vda', "nbd 'web/vda'", 'nbd web/vda\u2028'],
  ])
    t.throws(
      () => readGateCommand(original),
      { code: 'SOURCE_REFUSED', message: /is not allowed with this key$/ },
      // TAP ends a line at a line separator.
      JSON.stringify(original).replaceAll('\u2028', '\\u2028'),
    )
  const long = (): unknown => readGateCommand(`\x1b[2J${'x'.repeat(100_000)}`)
  t.throws(
    long,
    { message: /^the command "\\u001b\[2Jx{196}" is not allowed/ },
    'said in short, harmless',
  )
  t.strictSame(parseExportName('a/b'), { domain: 'a', target: 'b', token: undefined })
})

t.test('every word of the gate is for the domains and verbs of its client', async t => {
  const source = await aSource(t)
  await source.authorize('alice', '{ domains: [web] }')
  await source.authorize('carol', '{ domains: all, verbs: [describe] }')
  await source.authorize('dave', '{ domains: all, from: [192.0.2.7] }')
  const alice = await gate(t, source, 'alice')
  t.match(await alice.ask('hello', HELLO), { role: 'source' })
  const { token } = await alice.ask('session.open', { domain: 'web', want: {} })
  await alice.ask('session.renew', { token })
  await t.rejects(alice.ask('session.info', { token }), { message: /has not begun/ })
  t.match(await alice.ask('outcome', { token, waitMs: 0 }), { state: 'reserved' })
  const foreign = { code: 'SOURCE_REFUSED', message: 'client alice may not have domain db' }
  const recoveryPoint = '20261120T030007Z-4f2a'
  await t.rejects(alice.ask('session.open', { domain: 'db', want: {} }), foreign)
  await t.rejects(alice.ask('describe', { domain: 'db' }), foreign)
  await t.rejects(alice.ask('acknowledge', { domain: 'db', recoveryPoint }), foreign)
  await t.rejects(alice.ask('operator.status', {}), { message: /Unhandled method/ })
  await t.rejects(alice.ask('relay.admit', {}), { message: /Unhandled method/ })

  const carol = await gate(t, source, 'carol')
  const unknown = { message: /does not know this token/ }
  await t.rejects(carol.ask('session.renew', { token }), unknown)
  await t.rejects(carol.ask('outcome', { token, waitMs: 0 }), unknown)
  await t.rejects(carol.ask('session.open', { domain: 'web', want: {} }), {
    message: 'client carol may not ask for pull here',
  })
  for (const [client, peer, message] of [
    ['nobody', '192.0.2.7', 'client nobody is not authorized here'],
    ['dave', '192.0.2.9', 'client dave may not come from 192.0.2.9'],
    ['dave', undefined, 'client dave may not come from here'],
  ] as const)
    await t.rejects((await gate(t, source, client, peer)).ask('hello', HELLO), {
      code: 'SOURCE_REFUSED',
      message,
    })
  t.ok(await (await gate(t, source, 'dave', '192.0.2.7')).ask('hello', HELLO))
  const refused = source.logged.filter(({ msg }) => msg === 'gate refused')
  t.match(
    refused.map(({ client, reason }) => `${client ?? ''}: ${reason ?? ''}`),
    [
      ...Array<string>(3).fill('alice: client alice may not have domain db'),
      'carol: client carol may not ask for pull here',
      'nobody: client nobody is not authorized here',
      'dave: client dave may not come from 192.0.2.9',
      'dave: client dave may not come from here',
    ],
  )

  // A session that is on is no right of its own: each of its words is refused like the first one.
  const words = [
    ['session.renew', { token }],
    ['session.info', { token }],
    ['session.release', { token }],
    ['outcome', { token, waitMs: 0 }],
  ] as const
  for (const [rights, message] of [
    ['{ domains: [db] }', 'client alice may not have domain web'],
    ['{ domains: [web], verbs: [describe] }', 'client alice may not ask for pull here'],
    [undefined, 'client alice is not authorized here'],
  ] as const) {
    await source.authorize('alice', rights)
    for (const [method, params] of words)
      await t.rejects(alice.ask(method, params), { code: 'SOURCE_REFUSED', message }, method)
  }
  t.ok(await (await gate(t, source, 'local')).ask('hello', HELLO), 'root needs no rights')
})

t.test(
  'revoke ends what is on, at once, and says why',
  { skip: requires('nbd-server') },
  async t => {
    const source = await aSource(t)
    for (const client of ['alice', 'bob']) await source.authorize(client, '{ domains: all }')
    const socket = await connectToServe(source.serveSocket, { role: 'gate', client: 'alice' })
    const rpc = rpcConnection(socket, socket)
    const told: unknown[] = []
    rpc.onNotification('session.ended', (params: unknown) => void told.push(params))
    rpc.listen()
    await rpc.sendRequest('session.open', { domain: 'web', want: {} })
    const bob = await gate(t, source, 'bob')
    const stream = async (client: string) => {
      const relay = await openRelay(source.serveSocket, { client, peer: 'unix' })
      t.teardown(() => relay[Symbol.asyncDispose]())
      return openNbd(relay.socket, { exportName: 'web/vda' })
    }
    const [hers, his] = await Promise.all([stream('alice'), stream('bob')])

    const paths = { clients: path.join(source.dir, 'clients'), serveSocket: source.serveSocket }
    const file = path.join(source.dir, 'authorized_keys')
    const closed = once(socket, 'close')
    const revoked = await revoke(paths, tlsFolder(source.configFile), 'alice', file)
    t.match(revoked, { rights: true, keys: 0, certificates: undefined, ended: { leases: 1 } })
    await closed
    t.match(told, [{ code: 'SOURCE_REFUSED', reason: 'client alice was revoked on the source' }])
    await t.rejects(hers.read(0, Buffer.alloc(512)))
    await until('her stream is gone', () => source.members.size === 1)
    await his.read(0, Buffer.alloc(512))
    t.ok(await bob.ask('hello', HELLO))
    await t.rejects(stream('alice'), { message: 'client alice is not authorized here' })
  },
)

t.test(
  'rights that get narrower end what is open, and those that do not leave it alone',
  { skip: requires('nbd-server', 'ssh-keygen') },
  async t => {
    const source = await aSource(t)
    const { dir, configFile, serveSocket } = source
    execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', path.join(dir, 'id')])
    const where = { config: readSourceConfig(configFile), configFile, serveSocket }
    const give = (rights: { domains: string; bandwidth?: string; from?: string }, dryRun = false) =>
      authorize(
        { ...where, clients: path.join(dir, 'clients') },
        {
          ...{ key: path.join(dir, 'id.pub'), client: 'alice', verbs: undefined, install: false },
          ...{ bandwidth: undefined, from: undefined, file: undefined, dryRun, ...rights },
        },
        () => Promise.reject(new Error('nothing is read')),
      )
    t.match(await give({ domains: 'web' }), { narrowed: false, ended: undefined })
    const relay = await openRelay(serveSocket, { client: 'alice', peer: '192.0.2.7' })
    t.teardown(() => relay[Symbol.asyncDispose]())
    const disk = await openNbd(relay.socket, { exportName: 'web/vda' })
    const gate = await openServeLink(serveSocket, { role: 'gate', client: 'alice' })
    t.teardown(() => gate[Symbol.dispose]())
    const { token } = await gate.ask('session.open', { domain: 'web', want: {} })

    for (const rights of [{ domains: 'web,db' }, { domains: 'all' }])
      t.match(await give(rights), { narrowed: false, ended: undefined })
    const dry = await give({ domains: 'db' }, true)
    t.match(dry, { narrowed: true, ended: undefined })
    t.match(authorizeNotes(dry).join('\n'), /it would have less than before/)
    await disk.read(0, Buffer.alloc(512))

    const done = await give({ domains: 'db' })
    t.match(done, { narrowed: true, ended: { leases: 1 } })
    t.match(
      authorizeNotes(done).join('\n'),
      /less than before: 1 lease\(s\) and \d connection\(s\) ended/,
    )
    await t.rejects(disk.read(0, Buffer.alloc(512)))
    await until('the stream is gone', () => source.members.size === 0)
    t.match(source.domains.findLease(token)?.reason, {
      message: 'the rights of client alice were narrowed on the source',
    })
  },
)

/** What a user sees who opens a unix socket and says two lines: the first line of the answer, or why there is none. */
const PERL = `use IO::Socket::UNIX; my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or do { print "$!"; exit };
print $s $ARGV[1], "\\n", $ARGV[2], "\\n"; my $l = <$s>; print defined $l ? $l : 'closed'`

t.test(
  'a group may open one socket, for gates and relays only, of clients with rights',
  { skip: requires('perl', 'setpriv', 'getent') || (isRoot ? false : 'needs root') },
  async t => {
    const source = await aSource(t)
    await source.authorize('alice', '{ domains: [web] }')
    const socket = path.join(source.dir, 'gate', 'gate.sock')
    await using cleanup = new Cleanup()
    chmodSync(source.serveSocket, 0o600)
    await listenForGates(source.gateServer(), socket, 'nogroup', cleanup)
    const gid = Number(execFileSync('getent', ['group', 'nogroup']).toString().split(':')[2])
    t.match(statSync(socket), { uid: 0, gid })
    t.equal(statSync(socket).mode & 0o777, 0o660)
    t.match(statSync(path.dirname(socket)), { uid: 0, gid })
    t.equal(statSync(path.dirname(socket)).mode & 0o777, 0o750)
    t.equal(statSync(source.dir).mode & 0o777, 0o710)
    const hello = JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'hello', params: HELLO })
    const as = async (group: number, where: string, role: object): Promise<string> => {
      const user = ['--reuid=65534', `--regid=${group}`, '--clear-groups', '--']
      const child = spawn(
        'setpriv',
        [...user, 'perl', '-e', PERL, where, JSON.stringify(role), hello],
        { stdio: ['ignore', 'pipe', 'inherit'] },
      )
      let said = ''
      child.stdout.on('data', (part: Buffer) => (said += part.toString()))
      await once(child, 'close')
      return said
    }
    const alice = { role: 'gate', client: 'alice' }
    t.match(await as(gid, socket, alice), '"role":"source"')
    t.match(
      await as(gid, socket, { role: 'gate', client: 'local' }),
      'local is not authorized here',
    )
    t.equal(await as(gid, socket, { role: 'operator' }), 'closed')
    t.equal(await as(gid, socket, { role: 'hook' }), 'closed')
    t.equal(await as(gid, source.serveSocket, alice), 'Permission denied')
    t.equal(await as(gid - 1, socket, alice), 'Permission denied')
    await t.rejects(listenForGates(source.gateServer(), socket, 'no-such-group', cleanup), {
      code: 'USAGE',
      message: 'listen.gate.group: there is no group no-such-group on this host',
    })
  },
)
