// Pulls over ssh and TLS between the two hosts: what can be seen on the link, what listens, and what ends a pull.

import t from 'tap'
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { once } from 'node:events'
import { ROOT } from './names.ts'
import { waitFor } from './processes.ts'
import {
  clone,
  guestWrites,
  SSH,
  startServe,
  startWorld,
  untilOnBases,
  type Serve,
} from './world.ts'

/** Bytes that a full pull of the guest's data moves at the least; its holes are not sent. */
const ENOUGH = 5e6
/** The guest's own text, often enough that some copy lies in one frame. */
const MARKER = 'the guest said this in plain words'
const SOURCE_CONFIG = 'domains: { mydomain: {} }\n'
const TCP_CONFIG = `listen: { tcp: { host: 10.77.77.1, insecure: true } }\n${SOURCE_CONFIG}`
const STANDBY_CONFIG = `
sources:
  alpha: { transport: ssh, host: source, ${SSH} }
  plain: { transport: tcp, host: source, insecure: true, ${SSH} }
  secure:
    transport: tls
    host: source
    ${SSH}
    tls:
      ca: /etc/nbd-clone/tls/ca-cert.pem
      cert: /etc/nbd-clone/tls/client-cert.pem
      key: /etc/nbd-clone/tls/client-key.pem
defaults: { rpo: 4h }
domains:
  mydomain: { source: alpha }
  plain: { source: plain, domain: mydomain }
  secure: { source: secure, domain: mydomain }
  stranger: { source: alpha, domain: other }
`
/** Slow enough that something can happen to a pull while it copies, fast enough that the source keeps it. */
const SLOWLY = ['--limit-rate', '16MiB/s']

t.test('pulls between two hosts', async t => {
  const lab = await startWorld(TCP_CONFIG, STANDBY_CONFIG)
  t.teardown(() => lab[Symbol.asyncDispose]())
  const capture = readFileSync(path.join(ROOT, 'test', 'lab', 'capture.pl'), 'utf8')
  await lab.writeFile('source', '/var/lib/capture.pl', capture)
  let serve: Serve = await startServe(lab)
  const restart = async (config: string): Promise<void> => {
    await serve.stop()
    await lab.writeFile('source', '/etc/nbd-clone/source.yaml', config)
    serve = await startServe(lab)
  }
  /** What of a command can be read on the link. */
  const seen = async (...args: string[]): Promise<{ bytes: number; found: number }> => {
    const watcher = lab.spawn('source', ['perl', '/var/lib/capture.pl', MARKER])
    await once(watcher.stdout, 'data')
    const { exitCode, stderr } = await clone(lab, ...args)
    t.equal(exitCode, 0, stderr)
    watcher.signal('SIGTERM')
    const [bytes = 0, found = 0] = (await watcher.result).stdout.split('\n')[1]?.split(' ') ?? []
    return { bytes: Number(bytes), found: Number(found) }
  }
  const pulling = async (...args: string[]) => {
    const pull = lab.spawn('standby', ['clone', 'pull', 'mydomain', '--full', ...SLOWLY, ...args])
    const frozen = serve.count('frozen')
    await waitFor('the source to be frozen', 30, () => serve.count('frozen') > frozen)
    await waitFor('bytes to be copied', 30, async () => {
      const { stdout } = await lab.source(['clone-server', 'status', '--json'])
      const { domains } = JSON.parse(stdout) as { domains: { members: { bytes: number }[] }[] }
      const moved = domains.flatMap(({ members }) => members).map(({ bytes }) => bytes)
      return moved.length > 1 && Math.max(...moved) > 8e6
    })
    return pull
  }

  await lab.guest(['sh', '-c', `yes '${MARKER}' | head -n 20000 >/data/a/said; sync`])

  t.test('plain TCP shows what the guest wrote; the gate beside it goes over ssh', async t => {
    const { bytes, found } = await seen('pull', 'plain')
    t.ok(found > 0, `${found} frames with it, so the capture can see`)
    t.ok(bytes > ENOUGH, `${bytes} bytes`)
  })

  t.test(
    'after authorize nothing listens but sshd and our sockets, in a closed folder',
    async t => {
      await restart(SOURCE_CONFIG)
      const { stdout: network } = await lab.source(['ss', '-Htulpn'])
      const lines = network.split('\n').filter(line => line !== '')
      t.ok(lines.length > 0)
      t.strictSame(
        lines.filter(line => !line.includes('"sshd"')),
        [],
      )
      const { stdout: unix } = await lab.source(['ss', '-Hlxn'])
      const ours = [...unix.matchAll(/\/run\/nbd-clone\S*/g)].map(([socket]) => socket)
      // serve.sock takes hooks and operators: it gives no bytes of a disk.
      t.strictSame(ours.sort(), ['/run/nbd-clone/nbd.sock', '/run/nbd-clone/serve.sock'])
      const { stdout: mode } = await lab.source(['stat', '-c', '%a %U', '/run/nbd-clone'])
      t.equal(mode.trim(), '700 root')
    },
  )

  t.test('over ssh none of it can be read', async t => {
    const { bytes, found } = await seen('pull', 'mydomain')
    t.equal(found, 0)
    t.ok(bytes > ENOUGH, `${bytes} bytes`)
    t.equal((await clone(lab, 'verify', 'mydomain')).exitCode, 0)
    await guestWrites(lab)
  })

  t.test('over TLS none of it can be read, and the name in the certificate decides', async t => {
    await lab.source(['clone-server', 'tls', 'init', '--host', 'source'])
    await lab.source(['clone-server', 'tls', 'issue', 'standby', '--out', '/root/standby-tls'])
    const { stdout: folder } = await lab.source([
      ...['sh', '-c', 'cd /root/standby-tls && tar -cf - . | base64'],
    ])
    await lab.standby(
      [
        'sh',
        '-c',
        'umask 077; mkdir /etc/nbd-clone/tls; base64 -d | tar -xf - -C /etc/nbd-clone/tls',
      ],
      { input: folder },
    )
    await restart(`listen: { tls: { host: 10.77.77.1 } }\n${SOURCE_CONFIG}`)
    const { bytes, found } = await seen('pull', 'secure')
    t.equal(found, 0)
    t.ok(bytes > ENOUGH, `${bytes} bytes`)
    await lab.source(['clone-server', 'tls', 'revoke', 'standby'])
    const { exitCode, stderr } = await clone(lab, 'pull', 'secure')
    t.equal(exitCode, 11, stderr)
    t.match(stderr, /revoked/)
    await untilOnBases(lab, 15)
    await restart(SOURCE_CONFIG)
  })

  t.test(
    'a domain that the source does not have is refused like one that is not given',
    async t => {
      const { exitCode, stderr } = await clone(lab, 'pull', 'stranger')
      t.equal(exitCode, 11, stderr)
    },
  )

  t.test('a pull whose ssh connections are killed goes on, and the source is merged', async t => {
    const pull = await pulling()
    await lab.source(['pkill', '-KILL', '-f', '^sshd: root@notty'])
    const { exitCode, stderr } = await pull.result
    t.equal(exitCode, 0, stderr)
    await untilOnBases(lab, 15)
  })

  t.test(
    'a client that is revoked in the middle of a pull gets no more, and the source is merged',
    async t => {
      const pull = await pulling()
      await lab.source(['clone-server', 'revoke', 'standby'])
      const { exitCode, stderr } = await pull.result
      t.equal(exitCode, 11, stderr)
      await untilOnBases(lab, 15)
      const again = await clone(lab, 'pull', 'mydomain')
      t.equal(again.exitCode, 11, again.stderr)
      t.match(again.stderr, /refuses|authoriz/)
    },
  )

  t.test('a source that shows another host key is not believed', async t => {
    await lab.source([
      ...[
        'sh',
        '-c',
        'rm /etc/ssh/ssh_host_ed25519_key*; ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key',
      ],
    ])
    await lab.source(['sh', '-c', 'kill -HUP $(cat /run/sshd.pid)'])
    await waitFor('sshd to have it', 10, async () => {
      const { exitCode } = await clone(lab, 'pull', 'mydomain', '--accept-new-host-key')
      return exitCode === 31
    })
    const { exitCode, stderr } = await clone(lab, 'pull', 'mydomain')
    t.equal(exitCode, 31, stderr)
    t.match(stderr, /host key/)
  })
})
