// The ssh transport against a real sshd: whom it trusts, how it logs in, and what becomes of its connections.

import t, { type Test } from 'tap'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { connect, createServer, type AddressInfo } from 'node:net'
import { homedir, userInfo } from 'node:os'
import path from 'node:path'
import { text } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'
import type { NamedSource } from '../client/source/source.ts'
import { fingerprint } from '../client/source/ssh/host-key.ts'
import { sshPool } from '../client/source/ssh/pool.ts'
import { parseOptions, sshHops } from '../client/source/ssh/settings.ts'
import { NO_USER, type User } from '../client/source/user.ts'
import { Failure } from '../shared/failures.ts'
import {
  forcedCommand,
  knowHosts,
  makeKey,
  sourceAt,
  sshFolder,
  startSshd,
  tool,
  type Sshd,
  type SshdOptions,
} from './client/sshd.ts'
import { ROOT } from './lab/names.ts'
import { requires } from './nbd/requires.ts'

const skip = requires('/usr/sbin/sshd', 'ssh', 'ssh-keygen')
const never = new AbortController().signal
/** Compiled: under a TypeScript loader it would take seconds to start. */
const CLI = path.join(ROOT, 'dist', 'client', 'cli.js')
/** Says back what was asked for. */
const ECHO = 'echo "asked: $SSH_ORIGINAL_COMMAND"; cat'

async function aHost(
  t: Test,
  options: Partial<SshdOptions> = {},
): Promise<{ dir: string; sshd: Sshd }> {
  const dir = sshFolder(t)
  const allow = forcedCommand(dir, 'forced', ECHO)
  return { dir, sshd: await startSshd(t, dir, { allow, ...options }) }
}

const hostOf = ({ port }: Sshd): string => `[127.0.0.1]:${port}`
const fingerprintOf = (hostKey: string): string => fingerprint({ key: hostKey.split(' ')[1] ?? '' })
const publicKey = (dir: string, name: string): string =>
  readFileSync(path.join(dir, `${name}.pub`), 'utf8').trim()

async function failureOf(promise: Promise<unknown>): Promise<Failure> {
  const error: unknown = await promise.then(
    () => undefined,
    (error: unknown) => error,
  )
  if (error instanceof Failure) return error
  throw new Error(`no failure: ${String(error)}`, { cause: error })
}

async function until(done: () => boolean, why: () => string): Promise<void> {
  const end = performance.now() + 20_000
  while (!done()) {
    if (performance.now() > end) throw new Error(`not in time: ${why()}`)
    await sleep(10)
  }
}

/** What would keep this process alive. */
const handles = (): string[] =>
  process.getActiveResourcesInfo().filter(kind => /TCP|Pipe|Process|Timeout/.test(kind))

/** An ssh-agent of this test alone. @returns its socket */
async function anAgent(t: Test, dir: string): Promise<string> {
  const socket = path.join(dir, 'agent')
  const agent = spawn('ssh-agent', ['-D', '-a', socket], { stdio: 'ignore' })
  t.teardown(() => agent.kill('SIGKILL'))
  await until(
    () => existsSync(socket),
    () => 'no agent',
  )
  return socket
}

/** Runs one command and closes. @returns what it said */
async function say(source: NamedSource, command = 'gate', signal = never): Promise<string> {
  await using pool = sshPool(source)
  const remote = await pool.exec(command, signal)
  remote.input.end()
  return await text(remote.output)
}

t.test('a host that is known is connected to, by hashed names too', { skip }, async t => {
  const { dir, sshd } = await aHost(t)
  knowHosts(dir, `${hostOf(sshd)} ${sshd.hostKey()}`)
  t.equal(await say(sourceAt(sshd)), 'asked: gate\n')
  t.equal(await say(sourceAt(sshd), 'nbd mydomain/vda@aa'), 'asked: nbd mydomain/vda@aa\n')
  tool('ssh-keygen', ['-q', '-H', '-f', path.join(dir, 'known_hosts')])
  t.notMatch(readFileSync(path.join(dir, 'known_hosts'), 'utf8'), '127.0.0.1')
  t.equal(await say(sourceAt(sshd)), 'asked: gate\n')
})

t.test('an unknown host is refused, with its fingerprint and both remedies', { skip }, async t => {
  const { dir, sshd } = await aHost(t)
  const shown = fingerprintOf(sshd.hostKey())
  const failure = await failureOf(say(sourceAt(sshd)))
  t.match(failure, { code: 'UNSAFE', exit: 31 })
  t.equal(failure.message, `the host key of 127.0.0.1 is not known: ED25519 ${shown}`)
  t.match(failure.hint, '--accept-new-host-key')
  t.match(failure.hint, `sources.alpha.ssh.hostKey: '${shown}'`)
  t.notOk(existsSync(path.join(dir, 'known_hosts')), 'and nothing is written')
})

t.test('an unknown host becomes known when the user says so, once', { skip }, async t => {
  const { dir, sshd } = await aHost(t)
  const file = path.join(dir, 'known_hosts')
  writeFileSync(file, 'other.example ssh-ed25519 AAAA')
  const told: string[] = []
  const user: User = { acceptsNewHostKeys: true, tell: text => void told.push(text) }
  t.equal(await say(sourceAt(sshd, {}, user)), 'asked: gate\n')
  t.strictSame(readFileSync(file, 'utf8').split('\n'), [
    'other.example ssh-ed25519 AAAA',
    `${hostOf(sshd)} ${sshd.hostKey()}`,
    '',
  ])
  t.strictSame(told, [
    `alpha: accepted the new host key of 127.0.0.1: ED25519 ${fingerprintOf(sshd.hostKey())}, kept in ${file}`,
  ])
  await say(sourceAt(sshd))
  await say(sourceAt(sshd, {}, user))
  t.equal(told.length, 1)

  const knownHosts = path.join(dir, 'sub', 'ours')
  await say(sourceAt(sshd, { knownHosts, options: ['HashKnownHosts=yes'] }, user))
  t.match(readFileSync(knownHosts, 'utf8'), /^\|1\|/)
  t.equal(await say(sourceAt(sshd, { knownHosts })), 'asked: gate\n')
})

t.test('a changed host key is refused, whatever anybody says', { skip }, async t => {
  const { dir, sshd } = await aHost(t)
  makeKey(path.join(dir, 'old'))
  makeKey(path.join(dir, 'other-type'), 'ecdsa')
  const user: User = { ...NO_USER, acceptsNewHostKeys: true }
  const file = path.join(dir, 'known_hosts')
  for (const known of [publicKey(dir, 'old'), publicKey(dir, 'other-type')]) {
    knowHosts(dir, '# by hand', `${hostOf(sshd)} ${known}`)
    for (const options of [[], ['StrictHostKeyChecking=no']]) {
      const failure = await failureOf(say(sourceAt(sshd, { options }, user)))
      t.equal(failure.code, 'UNSAFE')
      t.match(failure.message, `it shows ED25519 ${fingerprintOf(sshd.hostKey())}, known is`)
      t.match(failure.message, `${fingerprintOf(known)} (${file}:2)`)
      t.match(failure.hint, `ssh-keygen -R '${hostOf(sshd)}' -f ${file}`)
    }
    t.notMatch(readFileSync(file, 'utf8'), sshd.hostKey())
  }
})

t.test('of a host with several keys, the one that is known is asked for', { skip }, async t => {
  const { dir, sshd } = await aHost(t, { hostKeys: ['ed25519', 'ecdsa', 'rsa'] })
  for (const type of ['rsa', 'ecdsa', 'ed25519'] as const) {
    knowHosts(dir, `${hostOf(sshd)} ${sshd.hostKey(type)}`)
    t.equal(await say(sourceAt(sshd)), 'asked: gate\n', type)
    const hostKey = fingerprintOf(sshd.hostKey(type))
    t.equal(await say(sourceAt(sshd, { hostKey })), 'asked: gate\n', `${type}, pinned`)
  }
})

t.test('a pinned key is the only one that counts', { skip }, async t => {
  const { dir, sshd } = await aHost(t)
  const right = fingerprintOf(sshd.hostKey())
  const wrong = fingerprintOf(publicKey(dir, 'id'))
  t.equal(await say(sourceAt(sshd, { hostKey: right })), 'asked: gate\n')
  knowHosts(dir, `${hostOf(sshd)} ${sshd.hostKey()}`)
  const failure = await failureOf(say(sourceAt(sshd, { hostKey: wrong })))
  t.equal(failure.code, 'UNSAFE')
  t.match(failure.message, `${right}, pinned is ${wrong}`)
})

t.test('a revoked key is refused, known or pinned; an authority is no help', { skip }, async t => {
  const { dir, sshd } = await aHost(t)
  const file = path.join(dir, 'known_hosts')
  knowHosts(dir, `${hostOf(sshd)} ${sshd.hostKey()}`, `@revoked * ${sshd.hostKey()}`)
  for (const ssh of [{}, { hostKey: fingerprintOf(sshd.hostKey()) }]) {
    const failure = await failureOf(say(sourceAt(sshd, ssh)))
    t.equal(failure.code, 'UNSAFE')
    t.match(failure.message, `shows a host key that is revoked (${file}:2)`)
  }
  knowHosts(dir, `@cert-authority * ${publicKey(dir, 'id')}`)
  const failure = await failureOf(say(sourceAt(sshd)))
  t.equal(failure.code, 'UNSAFE')
  t.match(failure.message, `that ${file}:1 trusts a certificate authority`)
})

t.test('a refused login names user, host and what was tried', { skip }, async t => {
  const dir = sshFolder(t)
  const [id, wanted, given] = ['id', 'wanted', 'given'].map(name => path.join(dir, name))
  for (const file of [wanted, given]) makeKey(file ?? '')
  const allow = forcedCommand(dir, 'forced', ECHO)
  const sshd = await startSshd(t, dir, { allow, key: wanted ?? '' })
  knowHosts(dir, `${hostOf(sshd)} ${sshd.hostKey()}`)
  const failure = await failureOf(say(sourceAt(sshd, { identity: given })))
  t.match(failure, { code: 'SOURCE_REFUSED', exit: 11 })
  t.equal(
    failure.message,
    `127.0.0.1 port ${sshd.port} refuses the login as ${userInfo().username}; tried: key file ${given}, key file ${id}`,
  )
  t.match(failure.hint, 'on the source run: clone-server authorize')
  rmSync(id ?? '')
  const nothing = await failureOf(say(sourceAt(sshd)))
  t.match(nothing.message, `tried: no key, there is none; there is no ${id}`)
})

t.test('a key file that others can read is not used', { skip }, async t => {
  const { dir, sshd } = await aHost(t)
  knowHosts(dir, `${hostOf(sshd)} ${sshd.hostKey()}`)
  const id = path.join(dir, 'id')
  chmodSync(id, 0o640)
  const failure = await failureOf(say(sourceAt(sshd)))
  t.equal(failure.code, 'UNSAFE')
  t.match(failure.message, `others than its owner can get at the private key ${id}`)
  t.match(failure.hint, `chmod 600 ${id}`)
})

t.test('an encrypted key needs an agent or a person', { skip }, async t => {
  const dir = sshFolder(t)
  const identity = path.join(dir, 'secret')
  makeKey(identity, 'ed25519', 'open sesame')
  const sshd = await startSshd(t, dir, {
    allow: forcedCommand(dir, 'forced', ECHO),
    key: identity,
  })
  knowHosts(dir, `${hostOf(sshd)} ${sshd.hostKey()}`)
  const failure = await failureOf(say(sourceAt(sshd, { identity })))
  t.equal(failure.code, 'SOURCE_REFUSED')
  t.match(failure.hint, `ssh-add ${identity}`)
  t.match(failure.message, `${identity} is encrypted, the agent does not have it, and nobody gave`)

  const asked: string[] = []
  const answering = (answer: string): User => ({
    ...NO_USER,
    ask: question => {
      asked.push(question)
      return Promise.resolve(answer)
    },
  })
  t.equal(
    (await failureOf(say(sourceAt(sshd, { identity }, answering('wrong'))))).code,
    'SOURCE_REFUSED',
  )
  asked.length = 0
  await using pool = sshPool(sourceAt(sshd, { identity }, answering('open sesame')))
  const first = await pool.exec('gate', never)
  sshd.killConnections()
  t.match(await first.over, { code: 'SOURCE_UNREACHABLE' })
  await pool.exec('gate', never)
  t.strictSame(asked, [`Passphrase for ${identity}: `], 'once, although it connected twice')

  const socket = await anAgent(t, dir)
  const askpass = path.join(dir, 'askpass')
  writeFileSync(askpass, "#!/bin/sh\necho 'open sesame'\n", { mode: 0o755 })
  const environment = { SSH_ASKPASS: askpass, SSH_ASKPASS_REQUIRE: 'force' }
  tool('ssh-add', ['-q', identity], { SSH_AUTH_SOCK: socket, ...environment })
  const options = [`IdentityAgent=${socket}`]
  t.equal(await say(sourceAt(sshd, { identity, options })), 'asked: gate\n')
  t.equal(await say(sourceAt(sshd, { options })), 'asked: gate\n', 'also when no file names it')
  const only = [...options, 'IdentitiesOnly=yes']
  t.equal((await failureOf(say(sourceAt(sshd, { options: only })))).code, 'SOURCE_REFUSED')
  process.env['SSH_AUTH_SOCK'] = socket
  t.teardown(() => Reflect.deleteProperty(process.env, 'SSH_AUTH_SOCK'))
  const byVariable = ['IdentityAgent=SSH_AUTH_SOCK']
  t.equal(await say(sourceAt(sshd, { options: byVariable })), 'asked: gate\n')
})

interface FakeAgent {
  /** How often it was connected to. */
  connections(): number
  /** How many of those are open. */
  open(): number
}

/** An agent of which some questions get no answer, and the others that of a real one. */
function deafAgent(t: Test, socket: string, real: string, isDeafTo: (type?: number) => boolean) {
  let connections = 0
  let open = 0
  const server = createServer(asking => {
    connections++
    open++
    const asked = connect(real)
    asking.on('data', message => {
      if (!isDeafTo(message[4])) asked.write(message)
    })
    asked.on('error', () => undefined).pipe(asking)
    asking
      .on('error', () => undefined)
      .on('close', () => {
        open--
        asked.destroy()
      })
  })
  t.teardown(() => server.close())
  return new Promise<FakeAgent>(resolve =>
    server.listen(socket, () => resolve({ connections: () => connections, open: () => open })),
  )
}

t.test('an agent that does not answer is asked once, and let go', { skip }, async t => {
  const { dir, sshd } = await aHost(t)
  knowHosts(dir, `${hostOf(sshd)} ${sshd.hostKey()}`)
  const socket = path.join(dir, 'deaf')
  const agent = await deafAgent(t, socket, await anAgent(t, dir), () => true)
  await using pool = sshPool(sourceAt(sshd, { options: [`IdentityAgent=${socket}`] }))
  const first = await pool.exec('gate', never)
  await until(
    () => agent.open() === 0,
    () => `${agent.open()} open`,
  )
  sshd.killConnections()
  await first.over
  const began = performance.now()
  await pool.exec('gate', never)
  t.ok(performance.now() - began < 4_000, 'connecting again does not wait for it')
  t.equal(agent.connections(), 1)
})

t.test('an agent that does not sign is let go with the login', { skip }, async t => {
  const { dir, sshd } = await aHost(t)
  knowHosts(dir, `${hostOf(sshd)} ${sshd.hostKey()}`)
  const [socket, real] = [path.join(dir, 'deaf'), await anAgent(t, dir)]
  tool('ssh-add', ['-q', path.join(dir, 'id')], { SSH_AUTH_SOCK: real })
  const isSigning = (type?: number): boolean => type === 13
  const agent = await deafAgent(t, socket, real, isSigning)
  const stop = new AbortController()
  const pool = sshPool(sourceAt(sshd, { options: [`IdentityAgent=${socket}`] }))
  const reason = new Failure('INTERRUPTED', 'enough')
  const exec = pool.exec('gate', stop.signal)
  await until(
    () => agent.connections() === 2,
    () => `${agent.connections()} connections`,
  )
  t.equal(agent.open(), 1)
  stop.abort(reason)
  await t.rejects(exec, reason)
  await pool[Symbol.asyncDispose]()
  await until(
    () => agent.open() === 0,
    () => `${agent.open()} open`,
  )
})

/** Types on a terminal once the program asks. @returns what stood there, and the exit status */
async function typed(command: readonly string[], keys: string): Promise<[string, number]> {
  const line = command.map(word => `'${word}'`).join(' ')
  const child = spawn('script', ['-qec', line, '/dev/null'], {
    stdio: ['pipe', 'pipe', 'ignore'],
    env: { ...process.env, NODE_OPTIONS: '' },
  })
  let said = ''
  child.stdout.setEncoding('utf8').on('data', (part: string) => {
    if (!said.includes('Passphrase') && (said + part).includes('Passphrase'))
      child.stdin.write(keys)
    said += part
  })
  const [exit] = (await once(child, 'close')) as [number]
  return [said, exit]
}

t.test(
  'a passphrase is asked for on the terminal, without echo',
  { skip: skip || requires('script') },
  async t => {
    const dir = sshFolder(t)
    const identity = path.join(dir, 'secret')
    makeKey(identity, 'ed25519', 'open sesame')
    const allow = forcedCommand(dir, 'forced', 'echo "not today" >&2; exit 11')
    const sshd = await startSshd(t, dir, { allow, key: identity })
    knowHosts(dir, `${hostOf(sshd)} ${sshd.hostKey()}`)
    const config = path.join(dir, 'standby.yaml')
    writeFileSync(
      config,
      `store: ${dir}/store\nsources: { a: { transport: ssh, host: 127.0.0.1, ssh: { port: ${sshd.port}, identity: ${identity} } } }\n` +
        'domains: { mydomain: { source: a } }\n',
    )
    const pull = [process.execPath, CLI, 'pull', 'mydomain', '--dry-run', '--config', config]
    const [said, exit] = await typed(pull, 'open sesame\r')
    t.match(said, `Passphrase for ${identity}: `)
    t.match(said, 'its gate is gone: not today')
    t.notMatch(said, 'sesame')
    t.equal(exit, 11)
    t.equal((await typed(pull, '\u0003'))[1], 130, 'Ctrl-C there is an interruption')
  },
)

t.test('behind another host: both must prove themselves', { skip }, async t => {
  const { dir, sshd } = await aHost(t)
  const jump = await startSshd(t, dir, { allow: 'restrict,port-forwarding' }, 'jump')
  writeFileSync(
    path.join(dir, 'ssh_config'),
    `Host bastion\n  HostName 127.0.0.1\n  Port ${jump.port}\n` +
      `Host behind\n  HostName 127.0.0.1\n  ProxyJump bastion\n  HostKeyAlias behind\n` +
      `Host *\n  UserKnownHostsFile ${dir}/known_hosts\n  GlobalKnownHostsFile none\n  IdentityFile ${dir}/id\n  IdentityAgent none\n`,
  )
  const behind = { ...sourceAt(sshd), host: 'behind' }
  const keys = [`behind ${sshd.hostKey()}`, `${hostOf(jump)} ${jump.hostKey()}`]
  t.match(await sshHops(behind), [
    { name: 'bastion', port: jump.port, pinnable: false },
    { name: 'behind', port: sshd.port, hostKeyName: 'behind', pinnable: true },
  ])
  for (const [known = '', who] of [
    [keys[0], 'bastion'],
    [keys[1], 'behind'],
  ]) {
    knowHosts(dir, known)
    const failure = await failureOf(say(behind))
    t.equal(failure.code, 'UNSAFE')
    t.match(failure.message, `the host key of ${who} is not known`)
    t.equal(failure.hint.includes('sources.alpha.ssh.hostKey'), who === 'behind')
  }
  knowHosts(dir, ...keys)
  await using pool = sshPool(behind)
  const remote = await pool.exec('gate', never)
  t.match(String((await once(remote.output, 'data'))[0]), 'asked: gate')
  t.equal(jump.killConnections(), 1)
  t.match(await remote.over, { code: 'SOURCE_UNREACHABLE', reason: /to behind is lost/ })
})

t.test('what cannot be followed is told', { skip }, async t => {
  sshFolder(t)
  const at = (...options: string[]) => sshHops(sourceAt({ port: 22 }, { options }))
  await t.rejects(at('ProxyCommand=nc %h %p'), {
    code: 'USAGE',
    message: /reaches 127.0.0.1 by a ProxyCommand/,
    hint: /use ProxyJump/,
  })
  await t.rejects(at('Nonsense=yes'), { code: 'USAGE', message: /Bad configuration option/ })
  await t.rejects(at('RevokedHostKeys=/krl'), { code: 'USAGE', message: /RevokedHostKeys/ })
  const [hop] = await at('IdentityFile=~/k-%r@%h', 'User=me', 'IdentityAgent=none')
  t.match(hop, { agent: undefined, user: 'me', hostKeyName: '127.0.0.1' })
  t.ok(hop?.identities.includes(path.join(homedir(), 'k-me@127.0.0.1')), String(hop?.identities))
  t.strictSame(
    [...parseOptions('port 22\nidentityfile a b\nidentityfile c\n')],
    [
      ['port', ['22']],
      ['identityfile', ['a b', 'c']],
    ],
  )
})

t.test('more commands than a connection takes make another one', { skip }, async t => {
  for (const [config, connections] of [
    [[], 4],
    [['MaxSessions 2'], 5],
  ] as const) {
    const { dir, sshd } = await aHost(t, { config })
    knowHosts(dir, `${hostOf(sshd)} ${sshd.hostKey()}`)
    await using pool = sshPool(sourceAt(sshd))
    const all = await Promise.all(
      Array.from({ length: 10 }, (_, at) => pool.exec(`nbd ${at}`, never)),
    )
    for (const remote of all) remote.input.end()
    const said = await Promise.all(all.map(({ output }) => text(output)))
    t.strictSame(
      said,
      Array.from({ length: 10 }, (_, at) => `asked: nbd ${at}\n`),
    )
    t.equal(sshd.killConnections(), connections)
  }
})

t.test('what can be compressed is, when the ssh configuration says so', { skip }, async t => {
  const dir = sshFolder(t)
  const length = 8 * 1024 * 1024
  const sshd = await startSshd(t, dir, {
    allow: forcedCommand(dir, 'forced', `head -c ${length} /dev/zero`),
  })
  let carried = 0
  const line = createServer(near => {
    const far = connect(sshd.port, '127.0.0.1')
    far.on('data', (bytes: Buffer) => (carried += bytes.length))
    far.pipe(near).pipe(far)
    for (const socket of [near, far]) socket.on('error', () => undefined)
  })
  line.listen(0, '127.0.0.1')
  await once(line, 'listening')
  t.teardown(() => line.close())
  const { port } = line.address() as AddressInfo
  knowHosts(dir, `[127.0.0.1]:${port} ${sshd.hostKey()}`)
  for (const [compression, least, most] of [
    ['yes', 0, length / 20],
    ['no', length, 2 * length],
  ] as const) {
    carried = 0
    await using pool = sshPool(
      sourceAt(
        { port },
        {
          identity: path.join(dir, 'id'),
          knownHosts: path.join(dir, 'known_hosts'),
          options: [`Compression=${compression}`],
        },
      ),
    )
    const remote = await pool.exec('nbd x', never)
    remote.input.end()
    let got = 0
    for await (const bytes of remote.output) got += (bytes as Buffer).length
    t.equal(got, length)
    t.ok(carried > least && carried < most, `${compression}: ${carried} bytes`)
  }
})

t.test('who takes what comes slowly gets all of it', { skip }, async t => {
  const dir = sshFolder(t)
  const length = 24 * 1024 * 1024
  const send = `head -c ${length} /dev/zero`
  const sshd = await startSshd(t, dir, { allow: forcedCommand(dir, 'forced', send) })
  knowHosts(dir, `${hostOf(sshd)} ${sshd.hostKey()}`)
  await using pool = sshPool(sourceAt(sshd))
  const { output } = await pool.exec('nbd a', never)
  await sleep(300)
  let got = 0
  for await (const bytes of output as AsyncIterable<Buffer>) {
    got += bytes.length
    if (Math.random() < 0.05) await sleep(10)
  }
  t.equal(got, length)
})

t.test('a command that ends early gives its last words, and a code', { skip }, async t => {
  const dir = sshFolder(t)
  const sshd = await startSshd(t, dir, {
    allow: forcedCommand(dir, 'forced', 'eval "$SSH_ORIGINAL_COMMAND"'),
  })
  knowHosts(dir, `${hostOf(sshd)} ${sshd.hostKey()}`)
  await using pool = sshPool(sourceAt(sshd))
  const words = 'clone-server: client x is not authorized'
  for (const [script, ending] of [
    [
      `printf '${words}\\n  hint: ask\\n  code: Y\\n' >&2; exit 11`,
      { code: 'SOURCE_REFUSED', reason: words, remedy: 'ask' },
    ],
    ["printf 'a\\033[2Jb' >&2; exit 11", { code: 'SOURCE_REFUSED', reason: 'a [2Jb' }],
    ['exit 10', { code: 'SOURCE_UNREACHABLE', reason: 'it ended with exit status 10' }],
    ['kill -KILL $$', { code: 'SOURCE_UNREACHABLE', reason: 'it ended with SIGKILL' }],
    ['no-such', { code: 'SOURCE_REFUSED', reason: /not found/, remedy: /clone-server authorize/ }],
  ] as const) {
    const remote = await pool.exec(script, never)
    t.match(await remote.over, ending)
    await t.rejects(text(remote.output), { code: ending.code, message: ending.reason })
  }
})

t.test('nobody there is unreachable', { skip }, async t => {
  const { dir, sshd } = await aHost(t)
  knowHosts(dir, `${hostOf(sshd)} ${sshd.hostKey()}`)
  sshd.stop()
  const failure = await failureOf(say(sourceAt(sshd)))
  t.equal(failure.code, 'SOURCE_UNREACHABLE')
  t.match(failure.message, /cannot connect to 127.0.0.1 port \d+ by ssh: connect ECONNREFUSED/)
})

t.test('an abort ends what it stands in, and nothing is left open', { skip }, async t => {
  const { dir, sshd } = await aHost(t)
  knowHosts(dir, `${hostOf(sshd)} ${sshd.hostKey()}`)
  const before = handles()
  const reason = new Failure('INTERRUPTED', 'enough')
  const after = (ms: number): AbortSignal => {
    const stop = new AbortController()
    setTimeout(() => stop.abort(reason), ms)
    return stop.signal
  }
  for (const ms of [0, 20, 60, 150, 400]) {
    await using pool = sshPool(sourceAt(sshd))
    const remote = await pool.exec('gate', after(ms)).catch((error: unknown) => error)
    if (remote instanceof Error) t.equal(remote, reason)
  }
  const silent = createServer(() => undefined)
  await new Promise<void>(resolve => silent.listen(0, '127.0.0.1', resolve))
  const { port } = silent.address() as AddressInfo
  await t.rejects(say(sourceAt({ port }), 'gate', after(200)), reason)
  silent.close()
  await until(
    () => handles().length <= before.length,
    () => handles().join(),
  )
  t.pass('no socket, timer or child')
})
