// The standby: what a pull of a real guest gives, and what is left when it is disturbed, on both hosts.

import { createHash, randomUUID } from 'node:crypto'
import { setTimeout as delay } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { generationSchema, type Generation } from '../../client/store/generation.ts'
import { BRAKE_SOCKET, startBrake } from './brake.ts'
import type { CommandResult, HostProcess } from './enter.ts'
import type { HostName } from './names.ts'
import { assertGapless, readRecords } from './records.ts'
import {
  clone,
  CLONE,
  guestWrites,
  IMAGES,
  sourceFaults,
  startServe,
  startWorld,
  untilOnBases,
  type Serve,
  SSH,
} from './world.ts'

t.setTimeout(1000_000)

const QUICK = { timeout: 60_000 }
/** For what waits until a lease lapses. */
const LAPSE = { timeout: 90_000 }

const SOURCE_DOMAINS = 'domains: { mydomain: {}, phantom: {} }'
const sourceConfig = (domains = SOURCE_DOMAINS): string => `
listen: { tcp: { host: 10.77.77.1, insecure: true } }
${domains}
`
const STANDBY_CONFIG = `
sources:
  alpha: { transport: tcp, host: source, insecure: true, gate: ssh, ${SSH} }
  nowhere: { transport: tcp, host: 10.77.77.9, insecure: true, gate: ssh, ${SSH} }
  noport: { transport: tcp, host: source, port: 9, insecure: true, gate: ssh, ${SSH} }
defaults: { source: alpha, rpo: 4h, keep: { last: 2 } }
domains:
  mydomain: {}
  second: { domain: mydomain }
  half: { domain: mydomain, disks: { vdb: { exclude: true } } }
  stranger: { domain: nosuchdomain }
  phantom: {}
  nowhere: { domain: mydomain, source: nowhere }
  noport: { domain: mydomain, source: noport }
`
/** The same clone, but NBD goes through the brake. */
const BRAKED = '/etc/nbd-clone/braked.yaml'
const BRAKED_CONFIG = `
sources: { alpha: { transport: unix, socket: ${BRAKE_SOCKET}, gate: ssh, host: source, ${SSH} } }
domains: { mydomain: { source: alpha, rpo: 4h, keep: { last: 2 }, stall: 15s } }
`
/** A clone that the source keeps of itself. */
const LOCAL = '/etc/nbd-clone/local.yaml'
const LOCAL_CONFIG = `
sources: { here: { transport: unix, gate: local } }
domains: { mydomain: { source: here } }
`

interface Published {
  readonly outcome: 'published'
  readonly recoveryPoint: string
  readonly seq: number
  readonly dir: string
  readonly source: 'merged' | 'kept'
  readonly omitted: readonly { target: string; reason: string }[]
  readonly pruned: { readonly remove: readonly { seq: number }[] }
}
interface HeldPull extends AsyncDisposable {
  readonly child: HostProcess
  release(): void
}
type Ran = Awaited<ReturnType<typeof clone>>

t.test('a standby', async t => {
  const lab = await startWorld(sourceConfig(), STANDBY_CONFIG)
  t.teardown(() => lab[Symbol.asyncDispose]())
  await lab.writeFile('standby', BRAKED, BRAKED_CONFIG)
  await lab.writeFile('source', LOCAL, LOCAL_CONFIG)
  let serve: Serve

  const sh = async (host: HostName, script: string): Promise<string> =>
    (await lab.run(host, ['sh', '-c', script])).stdout

  /** Everything that a failed pull must leave as it was. */
  const holding = (): Promise<string> =>
    sh(
      'standby',
      `cd ${CLONE} && readlink current && find generations -mindepth 1 -printf '%P %i %s %T@\\n' | sort && cat generations/*/*.json`,
    )
  const staging = (): Promise<string> => sh('standby', `ls -A ${CLONE}/staging`)

  /** How often the last pull tried to get a connection back. */
  const reconnects = async (): Promise<number> => {
    const line = await sh('standby', `tail -n 1 ${CLONE}/history.jsonl`)
    return (JSON.parse(line) as { reconnects: number }).reconnects
  }

  /** A pull that must succeed. */
  async function pulled(t: Test, ...args: string[]): Promise<Published> {
    const ran = await clone(lab, 'pull', ...args)
    t.equal(ran.exitCode, 0, ran.stderr)
    t.equal(ran.stderr, '')
    const [result] = (ran.json as { results: Published[] }).results
    if (result?.outcome !== 'published') throw new Error(`not published: ${ran.stdout}`)
    return result
  }

  /** Such an end of a pull: status, one sentence, and nothing changed; of a broken-off copy what the next pull may use is left. */
  async function failsWith(
    t: Test,
    ran: Pick<Ran, 'exitCode' | 'stderr'>,
    exit: number | readonly number[],
    sentence: RegExp,
    before?: string,
    left: 'nothing' | 'donor' = 'nothing',
  ): Promise<void> {
    t.ok([exit].flat().includes(ran.exitCode), `exit ${ran.exitCode}: ${ran.stderr}`)
    const [first = '', ...rest] = ran.stderr.split('\n')
    t.match(first, sentence)
    t.match(first, /^clone: /)
    t.match(rest, [/^ {2}hint: /, /^ {2}code: /], 'a hint and a code, nothing else')
    t.equal(rest.length, 2, ran.stderr)
    if (before === undefined) return
    t.equal(await holding(), before, 'the generations are untouched')
    const staged = await staging()
    if (left === 'donor') t.match(staged, /^\d{8}T\d{6}Z-\w+$/, 'what was copied is kept, once')
    else t.equal(staged, '', 'staging is empty')
  }

  /** A pull that stands in the middle of its copy, until its brake is released. */
  async function heldPull(MiB = 12): Promise<HeldPull> {
    // More than the brake lets pass: a later pull reads only what differs.
    await lab.guest([
      'dd',
      'if=/dev/urandom',
      'of=/data/a/fill',
      'bs=1M',
      `count=${MiB}`,
      'conv=notrunc',
    ])
    await lab.guest(['sync'])
    const brake = await startBrake(lab)
    const child = lab.spawn('standby', ['clone', 'pull', 'mydomain', '--config', BRAKED])
    const early = child.result.then(({ stderr }) => {
      throw new Error(`the pull ended before it was held: ${stderr}`)
    })
    await Promise.race([brake.held, early])
    early.catch(() => undefined)
    return {
      child,
      release: () => brake.release(),
      async [Symbol.asyncDispose]() {
        await child[Symbol.asyncDispose]()
        await brake[Symbol.asyncDispose]()
      },
    }
  }

  /** Seconds until a command that was started has ended. */
  async function endOf(child: HostProcess): Promise<CommandResult & { seconds: number }> {
    const began = Date.now()
    return { ...(await child.result), seconds: (Date.now() - began) / 1000 }
  }

  async function readGeneration(dir: string, host: HostName = 'standby'): Promise<Generation> {
    return generationSchema.parse(JSON.parse(await lab.readFile(host, `${dir}/generation.json`)))
  }

  /** Image against manifest and manifest against generation.json, with nothing but coreutils. */
  async function checkManifests(t: Test, dir: string, host: HostName = 'standby'): Promise<void> {
    for (const { target, format, digest, size } of (await readGeneration(dir, host)).disks) {
      const image = `${target}.${format}`
      const said = await lab.run(
        host,
        [
          'bash',
          '-c',
          `cd ${dir} && split -b 1M --filter='sha256sum | cut -c1-64' ${image} | cmp - ${target}.manifest && sha256sum ${target}.manifest && stat -c '%s %b' ${image}`,
        ],
        { reject: false },
      )
      t.equal(said.exitCode, 0, said.stderr)
      const [sum = '', sizes = ''] = said.stdout.split('\n')
      t.equal(sum.split(' ')[0], digest, `digest of ${image}`)
      const [bytes = 0, blocks = 0] = sizes.split(' ').map(Number)
      t.equal(bytes, size)
      if (format === 'raw') t.ok(blocks * 512 < size / 4, `${blocks * 512} of ${size} allocated`)
    }
  }

  t.afterEach(async test => {
    t.strictSame(await sourceFaults(lab), [], `on its bases after: ${test.name}`)
  })

  t.test('wrong input gets one sentence, and no clone', QUICK, async t => {
    await failsWith(
      t,
      await clone(lab, 'pull', 'yourdomain'),
      2,
      /unknown domain "yourdomain"; configured: mydomain, second/,
    )
    await failsWith(t, await clone(lab, 'pull', 'mydomain', '--frobnicate'), 2, /frobnicate/)
    await failsWith(t, await clone(lab, 'pull'), 2, /name a domain, or give --all/)
    await lab.writeFile('standby', '/etc/nbd-clone/bad.yaml', `${STANDBY_CONFIG}frequency: 1h\n`)
    await failsWith(
      t,
      await clone(lab, 'pull', 'mydomain', '--config', '/etc/nbd-clone/bad.yaml'),
      2,
      /bad\.yaml.*frequency/,
    )
    await failsWith(
      t,
      await clone(lab, 'pull', 'mydomain'),
      10,
      /source alpha: .*clone-server serve is not running/,
    )
    const { json } = await clone(lab, 'status', 'mydomain')
    t.match(json, { clones: [{ freshness: { state: 'none' }, generations: 0 }] })
    serve = await startServe(lab)
    await lab.guest(['dd', 'if=/dev/urandom', 'of=/data/a/fill', 'bs=1M', 'count=32'])
    await lab.guest(['sync'])
  })

  t.test('a pull of the running guest gives a complete, verified generation', QUICK, async t => {
    const definition = (await lab.source(['virsh', 'dumpxml', 'mydomain', '--inactive'])).stdout
    const one = await pulled(t, 'mydomain')
    t.equal(one.seq, 1)
    t.equal(one.source, 'merged')
    await untilOnBases(lab, 0)
    await guestWrites(lab)
    t.equal((await sh('standby', `readlink -f ${CLONE}/current`)).trim(), one.dir)

    await checkManifests(t, one.dir)
    const found = await readGeneration(one.dir)
    t.match(found, {
      seq: 1,
      domain: 'mydomain',
      recoveryPoint: { id: one.recoveryPoint, consistency: 'quiesced' },
      chunkSize: 1024 * 1024,
      disks: [
        { target: 'vda', format: 'raw', size: 512 * 1024 ** 2 },
        { target: 'vdb', format: 'qcow2' },
      ],
      omitted: [],
      verified: { level: 'all' },
    })
    t.equal(
      found.source.hostId,
      (await lab.readFile('source', '/var/lib/nbd-clone/host-id')).trim(),
    )
    t.match(definition, `<uuid>${found.source.domainUuid}</uuid>`)
    t.equal((await lab.readFile('standby', `${one.dir}/domain.xml`)).trim(), definition.trim())
    for (const file of ['domain.xml', 'live.xml'])
      t.notMatch(await lab.readFile('standby', `${one.dir}/${file}`), '.nbd-clone.')

    const qcow2 = ['qemu-img', 'check', '-q', `${one.dir}/vdb.qcow2`]
    t.equal((await lab.standby(qcow2, { reject: false })).exitCode, 0)
    const [vda, vdb] = await Promise.all([
      readRecords(await lab.path('standby', `${one.dir}/vda.raw`), 'raw'),
      readRecords(await lab.path('standby', `${one.dir}/vdb.qcow2`), 'qcow2'),
    ])
    t.strictSame([vda.damage, vdb.damage], [undefined, undefined], 'e2fsck finds nothing')
    assertGapless(vda.numbers, vdb.numbers)

    t.match((await lab.standby(['clone', 'status'])).stdout, /^mydomain +FRESH .* quiesced +1 /m)
    t.equal((await clone(lab, 'verify', 'mydomain')).exitCode, 0)
    t.equal(await staging(), '')
  })

  t.test('further pulls count on, retention prunes, the history is a chain', QUICK, async t => {
    const plan = await clone(lab, 'pull', 'mydomain', '--dry-run')
    t.match(plan.json, { results: [{ outcome: 'planned', disks: [{ target: 'vda' }, {}] }] })
    const second = await pulled(t, 'mydomain')
    t.equal(second.seq, 2)
    t.strictSame(second.pruned.remove, [])
    // As cron would: no terminal, no --json, not a word.
    const quiet = await lab.standby(['clone', 'pull', 'mydomain'], { reject: false })
    t.strictSame(quiet, { stdout: '', stderr: '', exitCode: 0 })
    const before = await holding()
    const due = await lab.standby(['clone', 'pull', 'mydomain', '--if-due'], { reject: false })
    t.strictSame(due, { stdout: '', stderr: '', exitCode: 0 })
    t.equal(await holding(), before, '--if-due did nothing')
    t.match(await clone(lab, 'list', 'mydomain'), {
      exitCode: 0,
      json: {
        generations: [
          { current: false, generation: { seq: 2 } },
          { current: true, generation: { seq: 3 } },
        ],
        historyProblems: [],
      },
    })
    const lines = (await lab.readFile('standby', `${CLONE}/history.jsonl`)).split('\n')
    const entries = lines.map(line => JSON.parse(line) as { previous: string; outcome: string })
    t.strictSame(
      entries.map(entry => entry.outcome),
      ['failed', 'merged', 'merged', 'merged'],
    )
    entries.forEach(({ previous }, at) => {
      const above = lines[at - 1]
      const sum = above === undefined ? null : createHash('sha256').update(above).digest('hex')
      t.equal(previous, sum, `line ${at + 1} continues line ${at}`)
    })
  })

  t.test('the source can keep a clone of itself, over a unix socket', QUICK, async t => {
    const argv = ['clone', 'pull', 'mydomain', '--config', LOCAL, '--json']
    const { stdout } = await lab.source(argv, { timeout: 40_000 })
    const [one] = (JSON.parse(stdout) as { results: Published[] }).results
    t.match(one, { outcome: 'published', seq: 1, source: 'merged' })
    await checkManifests(t, one?.dir ?? '', 'source')
    await sh('source', `rm -r ${CLONE}`)
  })

  t.test('two pulls of one clone: the second is told of the first', QUICK, async t => {
    await using held = await heldPull()
    const second = await clone(lab, 'pull', 'mydomain')
    await failsWith(t, second, 30, /mydomain is locked by process \d+ \(clone pull\)/)
    t.equal((await clone(lab, 'prune', 'mydomain')).exitCode, 30)
    t.equal((await clone(lab, 'status', 'mydomain')).exitCode, 0)
    held.release()
    const first = await held.child.result
    t.strictSame([first.exitCode, first.stderr], [0, ''])
    t.equal(await staging(), '')
  })

  t.test('two clones of one domain pulled at once both succeed', QUICK, async t => {
    const both = await Promise.all([pulled(t, 'mydomain'), pulled(t, 'second')])
    t.ok(
      both.some(({ source }) => source === 'merged'),
      both.map(({ source }) => source).join(),
    )
    await untilOnBases(lab, 0)
    await sh('standby', 'rm -r /var/lib/nbd-clone/clones/second')
  })

  t.test('a source that stops under the pull ends it, and merges', QUICK, async t => {
    const before = await holding()
    await using held = await heldPull()
    const stopped = await serve.stop()
    t.equal(stopped.exitCode, 0)
    t.strictSame(await sourceFaults(lab), [], 'merged before it stopped')
    await failsWith(t, await endOf(held.child), [10, 11, 20], /stopping|serve/, before, 'donor')
    serve = await startServe(lab)
  })

  t.test('a pull goes on when its connections are killed under it', LAPSE, async t => {
    for (const kill of [
      () => lab.source(['pkill', '-KILL', '-x', 'nbd-server']),
      // The gate's ssh: nobody else is logged in there.
      () => lab.source(['pkill', '-KILL', '-f', '^sshd: root@notty']),
    ]) {
      const before = (await clone(lab, 'list', 'mydomain')).json as { generations: object[] }
      // More than the sockets on the way can hold, so that something is lost.
      await using held = await heldPull(32)
      await kill()
      held.release()
      const { exitCode, stderr } = await held.child.result
      t.strictSame([exitCode, stderr], [0, ''], 'which is no reason to write to anybody')
      t.ok((await reconnects()) > 0, 'but the history knows')
      await untilOnBases(lab, 5)
      const { generations } = (await clone(lab, 'list', 'mydomain')).json as typeof before
      t.not(generations.at(-1), before.generations.at(-1), 'one recovery point more')
      t.equal((await clone(lab, 'verify', 'mydomain')).exitCode, 0)
      t.equal(await staging(), '')
    }
    await guestWrites(lab)
  })

  t.test('Ctrl-C ends a pull, and the source is on its bases again', QUICK, async t => {
    const before = await holding()
    await using held = await heldPull()
    held.child.signal('SIGINT')
    await failsWith(t, await endOf(held.child), 130, /interrupted by SIGINT/, before, 'donor')
    await untilOnBases(lab, 10)
  })

  t.test('the source of a pull that is killed is back within 10 seconds', QUICK, async t => {
    const before = await holding()
    const staged = await staging()
    await using held = await heldPull()
    held.child.signal('SIGKILL')
    await held.child.result
    await untilOnBases(lab, 10)
    t.equal(await holding(), before)
    t.not(await staging(), staged, 'its work is left')
    t.equal((await lab.source(['clone-server', 'status'], { reject: false })).exitCode, 0)
    await guestWrites(lab)
    await pulled(t, 'mydomain')
    t.equal(await staging(), '', 'and is cleared away')
  })

  t.test('a cut network ends a pull in time, and the source merges', LAPSE, async t => {
    const before = await holding()
    await using held = await heldPull()
    await lab.netCut()
    const ended = await endOf(held.child)
    t.ok((await reconnects()) > 0, 'it tried to go on')
    await failsWith(t, ended, [10, 20], /no byte for 15000 ms|gate/, before, 'donor')
    t.ok(ended.seconds < 60, `it ended after ${ended.seconds} s`)
    await untilOnBases(lab, 35)
    await lab.netHeal()
    await pulled(t, 'mydomain')
    t.equal(await staging(), '')
  })

  t.test('what the source does not have, or is not there, is said so', QUICK, async t => {
    const [stranger, phantom, nowhere, noport] = await Promise.all(
      ['stranger', 'phantom', 'nowhere', 'noport'].map(name => clone(lab, 'pull', name)),
    )
    if (!stranger || !phantom || !nowhere || !noport) throw new Error('four pulls')
    await failsWith(t, stranger, 11, /domain nosuchdomain is not exported by this source/)
    await failsWith(t, phantom, 11, /phantom/)
    await failsWith(
      t,
      nowhere,
      10,
      /cannot connect to 10\.77\.77\.9 port 22 by ssh: .*EHOSTUNREACH/,
    )
    await failsWith(t, noport, 10, /cannot connect to source:9/)
  })

  t.test('a full standby is told, before the pull and in it', QUICK, async t => {
    const before = await holding()
    const fill = (leave: string): Promise<string> =>
      sh(
        'standby',
        `fallocate -l $(($(df --output=avail -B1 /var/lib | tail -n 1) - ${leave})) /var/lib/${leave}`,
      )
    await fill('60000000')
    await failsWith(
      t,
      await clone(lab, 'pull', 'mydomain'),
      22,
      /mydomain\/staging: \S+ \S+ free, but a pull that changes everything needs \d/,
      before,
    )
    await sh('standby', 'rm /var/lib/60000000')
    await using held = await heldPull()
    await fill('2000000')
    held.release()
    await failsWith(
      t,
      await endOf(held.child),
      22,
      /staging\/\S+\/vd[ab]\.\w+: no space left/,
      before,
    )
    await sh('standby', 'rm /var/lib/2000000')
    await untilOnBases(lab, 10)
  })

  t.test(
    'a clone whose images are in use is not written, and who uses them is said',
    QUICK,
    async t => {
      const before = await holding()
      const image = (await sh('standby', `readlink -f ${CLONE}/current/vda.raw`)).trim()
      const loop = (await lab.standby(['losetup', '--find', '--show', image])).stdout
      const looped = await clone(lab, 'pull', 'mydomain')
      await lab.standby(['losetup', '--detach', loop])
      await failsWith(t, looped, 31, new RegExp(`in use: .*${loop}.*vda\\.raw`), before)

      await lab.writeFile(
        'standby',
        '/root/tester.xml',
        `<domain type='qemu'><name>tester</name><memory unit='MiB'>64</memory>
      <os><type arch='x86_64' machine='q35'>hvm</type></os>
      <seclabel type='static' model='dac' relabel='no'><label>+0:+0</label></seclabel>
      <devices><disk type='file'><driver name='qemu' type='raw'/><source file='${image}'/><target dev='vda'/></disk>
      <memballoon model='none'/></devices></domain>`,
      )
      await lab.standby(['virsh', '-q', 'create', '--paused', '/root/tester.xml'])
      const started = await clone(lab, 'pull', 'mydomain')
      await lab.standby(['virsh', '-q', 'destroy', 'tester'])
      await failsWith(t, started, 31, /in use: .*domain tester.*vda\.raw/, before)
    },
  )

  t.test(
    'a disk that cannot be frozen refuses the domain with reason and remedy',
    QUICK,
    async t => {
      const before = await holding()
      await sh(
        'source',
        `cd ${IMAGES} && truncate -s 1M odd.raw && qemu-img create -q -f qcow2 -b odd.raw -F raw odd.qcow2`,
      )
      const attach = (image: string, ...options: string[]) =>
        lab.source(
          ['virsh', '-q', 'attach-disk', 'mydomain', `${IMAGES}/${image}`, 'sda'].concat(
            ['--targetbus', 'usb', '--persistent', '--cache', 'none'],
            options,
          ),
        )
      const detach = () =>
        lab.source(['virsh', '-q', 'detach-disk', 'mydomain', 'sda', '--persistent'])
      await attach('odd.raw', '--subdriver', 'raw', '--mode', 'shareable')
      const shared = await clone(lab, 'pull', 'mydomain')
      await failsWith(t, shared, 11, /disk sda of mydomain: a shareable disk/, before)
      t.match(shared.stderr, /hint: exclude it in source\.yaml: domains\.mydomain\.disks\.sda/)
      await detach()
      await attach('odd.qcow2', '--subdriver', 'qcow2')
      // The source answers new connections with what it knew of the domain for so long.
      await delay(5_100)
      const backed = await clone(lab, 'pull', 'mydomain')
      await failsWith(t, backed, 11, /disk sda of mydomain: it has a backing file/, before)
      t.match(backed.stderr, /hint: flatten it: virsh blockpull mydomain sda --wait/)

      await serve.stop()
      const excluding = 'domains: { mydomain: { disks: { sda: { exclude: true } } } }'
      await lab.writeFile('source', '/etc/nbd-clone/source.yaml', sourceConfig(excluding))
      serve = await startServe(lab)
      const without = await pulled(t, 'mydomain')
      t.strictSame(without.omitted, [{ target: 'sda', reason: 'excluded by source.yaml' }])
      t.strictSame((await readGeneration(without.dir)).omitted, without.omitted)
      const half = await pulled(t, 'half')
      t.match(half.omitted, [{ target: 'vdb', reason: 'excluded in standby.yaml' }, {}])
      t.strictSame(
        (await readGeneration(half.dir)).disks.map(({ target }) => target),
        ['vda'],
      )
      await sh('standby', 'rm -r /var/lib/nbd-clone/clones/half')
      await detach()
      await serve.stop()
      await lab.writeFile('source', '/etc/nbd-clone/source.yaml', sourceConfig())
      serve = await startServe(lab)
    },
  )

  t.test('a clone of another host is not overwritten, unless it is adopted', QUICK, async t => {
    const before = await holding()
    await serve.stop()
    const other = randomUUID()
    await lab.writeFile('source', '/var/lib/nbd-clone/host-id', `${other}\n`)
    serve = await startServe(lab)
    const refused = await clone(lab, 'pull', 'mydomain')
    await failsWith(t, refused, 31, new RegExp(`belongs to domain .* host .*${other}`), before)
    t.match(refused.stderr, /hint: .*clone pull --adopt/)
    const adopted = await pulled(t, 'mydomain', '--adopt')
    t.equal((await readGeneration(adopted.dir)).source.hostId, other)
  })

  t.test('a flipped byte is found and named', QUICK, async t => {
    const image = (await sh('standby', `readlink -f ${CLONE}/current/vda.raw`)).trim()
    const flip = `printf '\\377' | dd of=${image} bs=1 seek=7340033 conv=notrunc status=none`
    await sh('standby', `cp --sparse=always ${image} /var/lib/kept.raw && ${flip}`)
    const verified = await clone(lab, 'verify', 'mydomain')
    t.equal(verified.exitCode, 21, verified.stderr)
    t.match(verified.json, {
      sound: false,
      disks: [{ target: 'vda', file: image, bad: [{ chunk: 7 }] }, { bad: [] }],
    })
    const said = await lab.standby(['clone', 'verify', 'mydomain'], { reject: false })
    t.match(said.stdout, /vda\.raw: chunk 7 \(byte 7340032\): differs/)
    await sh('standby', `cp --sparse=always /var/lib/kept.raw ${image}; rm /var/lib/kept.raw`)
    t.equal((await clone(lab, 'verify', 'mydomain')).exitCode, 0)
  })

  t.test('a power cut in a pull loses the pull, never a published generation', LAPSE, async t => {
    const newest = await pulled(t, 'mydomain')
    await lab.powerCut('standby')
    await lab.boot('standby')
    const first = await clone(lab, 'verify', 'mydomain', String(newest.seq))
    t.equal(first.exitCode, 0, 'just after pull had returned')
    // Taken now: a verify records itself beside the generation.
    const before = await holding()
    t.match(before, `${newest.recoveryPoint}\n`)

    await using held = await heldPull()
    await lab.powerCut('standby')
    await held.child.result
    await lab.boot('standby')
    t.equal(await holding(), before, 'in the middle of the next one')
    t.equal((await clone(lab, 'verify', 'mydomain')).exitCode, 0)
    const next = await pulled(t, 'mydomain')
    t.equal(next.seq, newest.seq + 1)
    t.equal(await staging(), '')
    await untilOnBases(lab, 35)
  })
})
