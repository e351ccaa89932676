// The gate through a real sshd and ssh: what the forced command lets through, and what it does not.

import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import path from 'node:path'
import { Duplex } from 'node:stream'
import { setTimeout as delay } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { authorize } from '../server/commands/authorize.ts'
import { readSourceConfig } from '../server/config/schema.ts'
import { askServe } from '../server/serve/client.ts'
import { openNbd } from '../shared/nbd/client.ts'
import { rpcConnection } from '../shared/rpc.ts'
import { requires } from './nbd/requires.ts'
import { smallSource, type SmallSource } from './server/small-source.ts'

const DISK = Buffer.alloc(1024 * 1024, 'data')
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
    const { serveSocket } = source
    const done = await authorize(
      {
        config: readSourceConfig(configFile),
        configFile,
        serveSocket,
        clients: path.join(dir, 'clients'),
      },
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
