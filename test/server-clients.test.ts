// Clients of the gate: each has what its rights say and no more; by the words of serve, and through a real sshd.

import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import path from 'node:path'
import { Duplex } from 'node:stream'
import { setTimeout as delay } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { readGateCommand } from '../server/gate/command.ts'
import { askServe, connectToServe, openServeLink, type ServeLink } from '../server/serve/client.ts'
import { authorize } from '../server/commands/authorize.ts'
import { revoke } from '../server/commands/revoke.ts'
import { readSourceConfig } from '../server/config/schema.ts'
import { listenForGates } from '../server/serve/gate-socket.ts'
import { Cleanup } from '../shared/cleanup.ts'
import { permitPeer } from '../server/clients/rights.ts'
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

t.test('where a client may come from', async t => {
  const from = ['192.0.2.7', '198.51.100.0/24', '2001:db8::/32']
  const table: [peer: string | undefined, may: boolean][] = [
    ...(['192.0.2.7', '198.51.100.255', '2001:db8::1', '::ffff:192.0.2.7'] as const).map(
      (peer): [string, boolean] => [peer, true],
    ),
    ...(['192.0.2.8', '198.51.101.1', '2001:db9::1', 'unix', '', undefined] as const).map(
      (peer): [string | undefined, boolean] => [peer, false],
    ),
  ]
  for (const [peer, may] of table) {
    const permitted = (): void => permitPeer('a', { domains: 'all', verbs: [], from }, peer)
    if (may) t.doesNotThrow(permitted, String(peer))
    else t.throws(permitted, { code: 'SOURCE_REFUSED', message: /may not come from/ }, String(peer))
  }
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

  await source.authorize('alice', undefined)
  await t.rejects(alice.ask('session.renew', { token }), { message: /not authorized here/ })
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
    const revoked = await revoke(paths, 'alice', path.join(source.dir, 'authorized_keys'))
    t.match(revoked, { rights: true, keys: 0, ended: { leases: 1 } })
    await once(socket, 'close')
    t.match(told, [{ code: 'SOURCE_REFUSED', reason: 'client alice was revoked on the source' }])
    await t.rejects(hers.read(0, Buffer.alloc(512)))
    await until('her stream is gone', () => source.members.size === 1)
    await his.read(0, Buffer.alloc(512))
    t.ok(await bob.ask('hello', HELLO))
    await t.rejects(stream('alice'), { message: 'client alice is not authorized here' })
  },
)

t.test('a client has so many gates, and so many questions at once', async t => {
  const source = await aSource(t)
  for (const client of ['alice', 'bob']) await source.authorize(client, '{ domains: all }')
  const gates = await Promise.all(Array.from({ length: 16 }, () => gate(t, source, 'alice')))
  await Promise.all(gates.map(one => one.ask('hello', HELLO)))
  await t.rejects((await gate(t, source, 'alice')).ask('hello', HELLO), {
    code: 'SOURCE_REFUSED',
    message: 'client alice has 16 gates open already',
  })
  t.ok(await (await gate(t, source, 'bob')).ask('hello', HELLO))

  // One that asks and never reads is owed so much, and then cut off; its question comes back in each answer.
  const socket = await connectToServe(source.serveSocket, { role: 'gate', client: 'bob' })
  const ended = new Promise<void>(resolve =>
    socket.on('error', () => resolve()).on('close', resolve),
  )
  const before = process.memoryUsage().rss
  const id = 'x'.repeat(20_000)
  const question = (at: number): string =>
    `${JSON.stringify({ jsonrpc: '2.0', id: `${at}${id}`, method: 'hello', params: HELLO })}\n`
  let asked = 0
  const flood = async (): Promise<void> => {
    for (; !socket.destroyed && asked < 100_000; asked++)
      if (!socket.write(question(asked))) await once(socket, 'drain')
  }
  await Promise.race([ended, flood().catch(() => undefined)])
  t.ok(asked > 100 && asked < 10_000, `cut off after ${asked} questions`)
  t.ok(process.memoryUsage().rss - before < 200 * 1024 * 1024)
  t.ok(await (await gate(t, source, 'bob')).ask('hello', HELLO), 'and others are answered')
})

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

/** A free port, as sshd itself cannot choose one. */
async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as { port: number }
  server.close()
  return port
}

/** A real sshd on loopback that lets in by this authorized_keys. @returns argv of an ssh to it, but for the command */
async function sshd(t: Test, dir: string, identity: string): Promise<string[]> {
  const port = await freePort()
  const hostKey = path.join(dir, 'host')
  execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', hostKey])
  const config = path.join(dir, 'sshd_config')
  writeFileSync(
    config,
    [
      ...[`Port ${port}`, 'ListenAddress 127.0.0.1', `HostKey ${hostKey}`, 'UsePAM no'],
      ...[`AuthorizedKeysFile ${dir}/authorized_keys`, 'StrictModes no', 'PidFile none'],
      ...['PermitRootLogin prohibit-password', 'PasswordAuthentication no', ''],
    ].join('\n'),
  )
  execFileSync('mkdir', ['-p', '/run/sshd'])
  const child = spawn('/usr/sbin/sshd', ['-D', '-e', '-f', config], {
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  let said = ''
  child.stderr.on('data', (part: Buffer) => (said += part.toString()))
  t.teardown(() => child.kill('SIGTERM'))
  await until('sshd listens', () => {
    if (child.exitCode !== null) throw new Error(said)
    return said.includes('Server listening')
  })
  const known = path.join(dir, 'known_hosts')
  writeFileSync(known, `[127.0.0.1]:${port} ${readFileSync(`${hostKey}.pub`, 'utf8')}`)
  const options = [
    `UserKnownHostsFile=${known}`,
    'BatchMode=yes',
    'IdentitiesOnly=yes',
    'StrictHostKeyChecking=yes',
  ]
  return [
    ...['-F', 'none', '-T', '-p', String(port), '-i', identity],
    ...options.flatMap(one => ['-o', one]),
    'root@127.0.0.1',
  ]
}

const SSH = requires('ssh', 'ssh-keygen', 'nbd-server')

t.test(
  'through a real sshd: one line, and no way around it',
  { skip: SSH || (isRoot ? false : 'needs root') },
  async t => {
    const source = await aSource(t)
    const { dir, configFile } = source
    const identity = path.join(dir, 'id')
    execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', identity])
    const file = path.join(dir, 'authorized_keys')
    const done = await authorize(
      { config: readSourceConfig(configFile), configFile, clients: path.join(dir, 'clients') },
      {
        ...{ key: `${identity}.pub`, client: 'alice', domains: 'web', verbs: undefined },
        ...{ bandwidth: undefined, from: '127.0.0.1', install: true, file, dryRun: false },
      },
      () => Promise.reject(new Error('nothing is read')),
    )
    t.match(done.line, /^restrict,from="127\.0\.0\.1",command="/)
    const login = await sshd(t, dir, identity)
    const ssh = (words: string[]) => {
      const child = spawn('ssh', [...login, ...words], { stdio: 'pipe' })
      t.teardown(() => child.kill())
      child.stdin.on('error', () => undefined)
      return child
    }

    const stream = ssh([`nbd web/vda`])
    const disk = await openNbd(Duplex.from({ readable: stream.stdout, writable: stream.stdin }), {
      exportName: 'web/vda',
    })
    const got = Buffer.alloc(DISK.length)
    await disk.read(0, got)
    t.strictSame(got, DISK)
    t.match([...source.members], [{ client: 'alice', peer: '127.0.0.1', target: 'vda' }])
    stream.kill('SIGKILL')
    await until('a killed ssh takes its stream with it', () => source.members.size === 0)

    const child = ssh(['gate'])
    const rpc = rpcConnection(child.stdout, child.stdin)
    rpc.listen()
    t.match(await rpc.sendRequest('hello', HELLO), { role: 'source' })
    child.stdin.end()
    await once(child, 'close')

    for (const [words, message] of [
      [['nbd', 'db/vda'], /client alice may not have domain db\n/],
      [['nbd', 'web/../../etc/passwd'], /is not allowed with this key\n/],
      [['cat', '/etc/passwd'], /the command "cat \/etc\/passwd" is not allowed with this key\n/],
      [['gate', '--client', 'bob'], /is not allowed/],
    ] as const) {
      const refused = ssh([...words])
      refused.stdin.end()
      const said = { out: '', err: '' }
      refused.stdout.on('data', (part: Buffer) => (said.out += part.toString()))
      refused.stderr.on('data', (part: Buffer) => (said.err += part.toString()))
      const [code] = (await once(refused, 'close')) as [number]
      t.match({ code, ...said }, { code: 11, out: '', err: message }, words.join(' '))
    }
    t.match(
      source.logged
        .filter(({ msg }) => msg === 'refused')
        .map(({ client, peer, what }) => ({ client, peer, what })),
      [
        { client: 'alice', peer: '127.0.0.1', what: /nbd web\/\.\./ },
        { what: /cat \/etc\/passwd/ },
        { what: /gate --client bob/ },
      ],
    )
    for (const forward of [
      ['-L', `${dir}/l.sock:${source.serveSocket}`],
      ['-R', `${dir}/r.sock:${source.serveSocket}`],
    ]) {
      const tried = spawn('ssh', ['-o', 'ExitOnForwardFailure=yes', ...forward, ...login, 'gate'], {
        stdio: ['pipe', 'pipe', 'ignore'],
      })
      t.teardown(() => tried.kill())
      if (forward[0] === '-R') {
        const [code] = (await once(tried, 'close')) as [number]
        t.equal(code, 255, 'no remote forwarding')
        continue
      }
      await until('ssh listens', async () => {
        const asked = await askServe(
          `${dir}/l.sock`,
          { role: 'operator' },
          'operator.status',
          {},
        ).catch((error: unknown) => error)
        const cause = (asked as { cause?: { code?: string } }).cause?.code
        if (cause === 'ENOENT') return false
        t.match(asked, { code: 'SOURCE_UNREACHABLE' }, 'no local forwarding')
        return true
      })
    }
  },
)
