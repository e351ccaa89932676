// The limits of a session on a real guest: who stands still, who has gone, what grows too large; each ended in time, and the
// reason told to who pulls and in status.

import { setTimeout as delay } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { BRAKE_SOCKET, startBrake } from './brake.ts'
import type { HostProcess } from './enter.ts'
import type { HostName } from './names.ts'
import { waitFor } from './processes.ts'
import {
  guestWrites,
  journalSteps,
  NBD,
  sourceFaults,
  startServe,
  startWorld,
  untilOnBases,
  type Serve,
  SSH,
} from './world.ts'

t.setTimeout(1000_000)

const TCP = 'nbd://10.77.77.1/mydomain/vda'
const sourceConfig = (defaults: string): string => `
listen: { tcp: { host: 10.77.77.1, insecure: true } }
defaults: ${defaults}
domains: { mydomain: {} }
`
const QUICK_STALL = '{ session: { stall: 5s, floor: 64KiB } }'
const NO_STALL = '{ session: { floor: 0 }, overlay: { max: 8MiB } }'
/** A pull that stands still for certain, and would not notice that for long. */
const BRAKED = '/etc/nbd-clone/braked.yaml'
const BRAKED_CONFIG = `
sources: { alpha: { transport: unix, socket: ${BRAKE_SOCKET}, gate: ssh, host: source, ${SSH} } }
domains: { mydomain: { source: alpha, rpo: 4h, stall: 5m } }
`

interface Status {
  readonly state: string
  readonly members: { client?: string; target: string; peer: string; bytes: number }[]
  readonly last?: { recoveryPoint: string; state: string; reason?: string; freezeMs?: number }
  readonly refusals: { export: string; reason: string }[]
}

t.test('the limits of a session', async t => {
  const lab = await startWorld(sourceConfig(QUICK_STALL))
  t.teardown(() => lab[Symbol.asyncDispose]())
  await lab.writeFile('standby', BRAKED, BRAKED_CONFIG)
  let serve: Serve = await startServe(lab)

  const server = (...args: string[]) =>
    lab.source(['clone-server', ...args], { reject: false, timeout: 60_000 })
  const sh = async (host: HostName, script: string): Promise<string> =>
    (await lab.run(host, ['sh', '-c', script])).stdout

  async function status(): Promise<Status> {
    const { domains } = JSON.parse((await server('status', '--json')).stdout) as {
      domains: [Status]
    }
    return domains[0]
  }

  async function restart(defaults: string): Promise<void> {
    await serve.stop()
    await lab.writeFile('source', '/etc/nbd-clone/source.yaml', sourceConfig(defaults))
    serve = await startServe(lab)
  }

  /** Waits for the next freeze while `start` runs. */
  async function frozenBy<T>(start: () => T): Promise<T> {
    const before = serve.count('frozen')
    const started = start()
    await waitFor('the freeze', 30, () => serve.count('frozen') > before)
    return started
  }

  /** A client with requests in flight whose replies nobody takes. */
  const stuckClient = (host: HostName, uri: string): HostProcess =>
    lab.spawn(host, [
      'bash',
      '-c',
      `exec nbdcopy --connections=1 '${uri}' - > >(exec sleep 60 >/dev/null 2>&1)`,
    ])

  /** A client that has read a little, and keeps its connection. */
  const idleClient = (host: HostName, uri: string): HostProcess =>
    lab.spawn(host, [
      'sh',
      '-c',
      `mkdir -p /run/fuse; exec nbdfuse --connections=1 /run/fuse/disk '${uri}'`,
    ])

  async function kill(client: HostProcess, host: HostName): Promise<void> {
    client.signal('SIGKILL')
    await client.result
    await lab.run(host, ['sh', '-c', 'fusermount3 -uz /run/fuse 2>/dev/null || true'])
  }

  /** The nbd-server that was started last, by its process id on the source. */
  const newestServer = (): { connection: string; pid: string } => {
    const line = serve.log().findLast(({ msg }) => msg === 'connection')
    const { connection, pid } = line ?? { connection: '', pid: '' }
    return { connection: String(connection), pid: String(pid) }
  }

  /** On its bases in time, and status says why. */
  async function endsWithin(t: Test, seconds: number, reason: RegExp): Promise<void> {
    const began = Date.now()
    await untilOnBases(lab, seconds)
    t.comment(`on its bases after ${((Date.now() - began) / 1000).toFixed(1)} s`)
    const last = await waitFor('the outcome', 10, async () => {
      const one = await status()
      return one.state === 'idle' && one.last
    })
    t.match(last, { state: 'merged', reason })
    t.match((await server('status')).stdout, reason)
  }

  t.afterEach(async () => {
    t.strictSame(await sourceFaults(lab), [], 'the source is as it was found')
    await guestWrites(lab)
  })

  t.test('a slow reader is left alone; one that stands still ends its session', async t => {
    const slow =
      'while ! [ -e /run/stop ]; do dd bs=64k count=8 iflag=fullblock of=/dev/null status=none; sleep 0.5; done; exec sleep 60'
    const reader = await frozenBy(() =>
      lab.spawn('source', [
        'bash',
        '-c',
        `exec nbdcopy --connections=1 --requests=1 '${NBD}' - > >(exec >/dev/null 2>&1; ${slow})`,
      ]),
    )
    await delay(11_000)
    const reading = await status()
    t.equal(reading.state, 'frozen', 'twice as long as a stall')
    t.match(reading.members, [{ target: 'vda', peer: 'unix' }])
    const { bytes = 0 } = reading.members[0] ?? {}
    t.ok(bytes > 1024 ** 2 && bytes < 64 * 1024 ** 2, `${bytes} bytes moved`)
    t.match((await server('status')).stdout, / {2}stock unix vda \d+(\.\d)? MiB {2}/)
    await sh('source', 'touch /run/stop')
    await endsWithin(t, 12, /the session moved fewer than 64 KiB a second for 5\.0s/)
    await kill(reader, 'source')
  })

  t.test('a client that read a little and stays, next to one that is stopped', async t => {
    const idle = await frozenBy(() => idleClient('source', NBD))
    const connected = serve.count('connection')
    // In the background of a shell: what enters a host stops and waits together with what it started.
    const copy = `nbdcopy --connections=1 ${TCP} - | sleep 60 >/dev/null 2>&1`
    const stopped = lab.spawn('standby', [
      ...['bash', '-c', `${copy} & jobs -p > /run/client; exec sleep 60 >/dev/null 2>&1`],
    ])
    await waitFor('the second', 10, () => serve.count('connection') > connected)
    await delay(1000)
    await sh('standby', 'kill -STOP $(cat /run/client)')
    await endsWithin(t, 12, /moved fewer than 64 KiB/)
    await sh('standby', 'kill -KILL $(cat /run/client)')
    await kill(idle, 'source')
    await kill(stopped, 'standby')
  })

  t.test('a pull that stands still is ended, and told why', async t => {
    await using brake = await startBrake(lab)
    await using pull = lab.spawn('standby', ['clone', 'pull', 'mydomain', '--config', BRAKED])
    await brake.held
    const began = Date.now()
    const { exitCode, stderr } = await pull.result
    t.ok(Date.now() - began < 15_000, `after ${Date.now() - began} ms`)
    t.equal(exitCode, 11, stderr)
    t.match(stderr, /session ended under the pull: the session moved fewer than 64 KiB a second/)
    t.match(stderr, /hint: find what holds the reader up/)
    await endsWithin(t, 10, /moved fewer than 64 KiB/)
  })

  t.test('a session held by hand may stand still', async t => {
    t.equal((await server('session', 'open', 'mydomain')).exitCode, 0)
    const idle = idleClient('source', NBD)
    await waitFor('the reader', 10, async () => (await status()).members.length === 1)
    await delay(5000)
    t.equal((await status()).state, 'frozen')
    await kill(idle, 'source')
    await waitFor('its end', 10, async () => (await status()).members.length === 0)
    t.match((await server('session', 'close', 'mydomain')).stdout, /^mydomain is merged/)
    t.match((await status()).last, { state: 'merged', freezeMs: Number })
    t.notOk((await status()).last?.reason, 'nothing ended it')
  })

  t.test('a killed pull costs the source no lapse', async t => {
    for (const pause of [0, 600]) {
      const pull = await frozenBy(() => lab.spawn('standby', ['clone', 'pull', 'mydomain']))
      await delay(pause)
      pull.signal('SIGKILL')
      t.equal((await pull.result).exitCode, 137)
      await endsWithin(t, 10, /(client|connection) went away/)
    }
  })

  t.test('an overlay that outgrows its limit ends the pull, which is told why', async t => {
    await restart(NO_STALL)
    await using brake = await startBrake(lab)
    await using pull = lab.spawn('standby', ['clone', 'pull', 'mydomain', '--config', BRAKED])
    await brake.held
    await delay(3000)
    t.equal((await status()).state, 'frozen', 'what stands still may, with a floor of 0')
    await lab.guest(['sh', '-c', 'dd if=/dev/zero of=/data/b/big bs=1M count=12 conv=fsync'])
    const { exitCode, stderr } = await pull.result
    t.equal(exitCode, 11, stderr)
    t.match(stderr, /the overlay of disk vdb grew to .* MiB, over its limit of 8 MiB/)
    t.match(stderr, /hint: pull when the guest writes less, or raise overlay\.max/)
    await endsWithin(t, 20, /the overlay of disk vdb grew/)
    await lab.guest(['rm', '/data/b/big'])
  })

  t.test('overlays never take the reserve of their file system', async t => {
    t.equal((await server('session', 'open', 'mydomain')).exitCode, 0)
    const left = `$(($(df --output=size -B1 /var/lib | tail -n 1) * 8 / 100))`
    const free = '$(df --output=avail -B1 /var/lib | tail -n 1)'
    await sh('source', `fallocate -l $((${free} - ${left})) /var/lib/filler`)
    await endsWithin(t, 15, /has .* free, less than its reserve of/)
    await sh('source', 'rm /var/lib/filler')
    const closed = await server('session', 'close', 'mydomain')
    t.equal(closed.exitCode, 11)
    t.match(closed.stderr, /less than its reserve of/)
  })

  t.test('an nbd-server that does not notice its end is ended within 5 s', async t => {
    for (const [name, uri, client] of [
      ['unix, idle', NBD, idleClient],
      ['tcp, replies under way', TCP, stuckClient],
    ] as const) {
      const reader = await frozenBy(() => client('source', uri))
      // It must have been seen alive, as any reader is that lives for some seconds.
      await delay(3500)
      await lab.source(['kill', '-STOP', newestServer().pid])
      const before = serve.count('an nbd-server that outlives its client is ended')
      await kill(reader, 'source')
      const killed = Date.now()
      await waitFor(
        'the end',
        5,
        () => serve.count('an nbd-server that outlives its client is ended') > before,
      )
      t.pass(`${name}: ended after ${Date.now() - killed} ms`)
      await untilOnBases(lab, 10)
    }
  })

  t.test('a hook that dies when it was let in leaves no membership', async () => {
    const silent = lab.spawn('source', [
      'bash',
      '-c',
      'exec 3<>/dev/tcp/10.77.77.1/10809; exec sleep 60',
    ])
    const connected = serve.count('connection')
    await waitFor('the connection', 10, () => serve.count('connection') > connected)
    const { connection, pid } = newestServer()
    // As from its prerun, whose shell is killed before nbd-server hears of it.
    await frozenBy(() =>
      server(
        ...['hook', 'begin', '--socket', '/run/nbd-clone/serve.sock', '--connection', connection],
        ...['--domain', 'mydomain', '--target', 'vda', '--pid', pid],
      ),
    )
    await untilOnBases(lab, 10)
    await kill(silent, 'source')
  })

  t.test('a stock client whose network is cut is noticed by TCP itself', async t => {
    const reader = await frozenBy(() => idleClient('standby', TCP))
    await delay(500)
    await lab.netCut()
    const cut = Date.now()
    await untilOnBases(lab, 30)
    t.comment(`on its bases ${Date.now() - cut} ms after the cut`)
    await lab.netHeal()
    await kill(reader, 'standby')
  })

  t.test(
    'a session ends at its age; a refused client shows in status, with the reason',
    async t => {
      await restart('{ session: { maxAge: 2s } }')
      t.equal((await server('session', 'open', 'mydomain')).exitCode, 0)
      await endsWithin(t, 10, /the session is older than session\.maxAge \(2\.0s\)/)

      await restart('{ overlay: { reserve: 100% } }')
      const refused = await lab.source(['nbdinfo', '--size', NBD], { reject: false })
      t.not(refused.exitCode, 0)
      const reason = /usable above the reserve \(overlay\.reserve\)/
      t.match((await status()).refusals, [{ export: 'mydomain/vda', reason }])
      t.match((await server('status')).stdout, /^mydomain: refused mydomain\/vda at 20.*overlay/m)
    },
  )

  t.test(
    'a merge is as fast as allowed; one that takes long is told, and gets all bandwidth',
    async t => {
      await restart('{ merge: { bandwidth: 1, alarm: 3s } }')
      t.equal((await server('session', 'open', 'mydomain')).exitCode, 0)
      await lab.guest(['dd', 'if=/dev/urandom', 'of=/data/a/much', 'bs=1M', 'count=12'])
      await lab.guest(['sync'])
      const closing = server('session', 'close', 'mydomain')
      await waitFor('the alarm', 30, async () =>
        /merging: the merge of disk vda of mydomain has taken \d+ s/.test(
          (await server('status')).stdout,
        ),
      )
      t.equal((await closing).exitCode, 0)
      t.ok((await journalSteps(lab)).includes('alarm'))
      t.ok(serve.count('the merge takes long, its bandwidth limit is lifted') > 0)
      await untilOnBases(lab, 10)
      await lab.guest(['rm', '/data/a/much'])
    },
  )
})
