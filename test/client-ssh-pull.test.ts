// A pull through a real sshd: gate and disks over its channels, and what becomes of it when connections are lost.

import t, { type Test } from 'tap'
import { createHash, randomBytes } from 'node:crypto'
import { readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { pino } from 'pino'
import { NOBODY, type Watcher } from '../client/attempt.ts'
import { pullCommand } from '../client/commands/pull.ts'
import { cloneConfig, loadConfig, type CloneConfig } from '../client/config/effective.ts'
import { pull } from '../client/pull.ts'
import type { PullOptions } from '../client/pulled.ts'
import type { Retry } from '../client/source/back-off.ts'
import { openGate } from '../client/source/gate.ts'
import type { DiskConnection } from '../client/source/lasting.ts'
import { connectDisk } from '../client/source/nbd.ts'
import { lastingDisk } from '../client/source/reconnect.ts'
import { manyStreams, streamsPerDisk } from '../client/source/streams.ts'
import { Failure } from '../shared/failures.ts'
import { NbdError } from '../shared/nbd/client.ts'
import { fakeSource, TOKEN, type FakeSource } from './client/fake-source.ts'
import {
  forcedCommand,
  knowHosts,
  makeKey,
  sourceAt,
  sshFolder,
  startSshd,
  type Sshd,
} from './client/sshd.ts'
import { requires } from './nbd/requires.ts'

const MIB = 1024 * 1024
const skip = requires('/usr/sbin/sshd', 'ssh', 'ssh-keygen', 'nbdkit')
const never = new AbortController().signal
const log = pino({ level: 'silent' })
const VDA = Buffer.concat([randomBytes(3 * MIB), Buffer.alloc(2 * MIB), randomBytes(MIB + 512 * 7)])
const VDB = randomBytes(2 * MIB)
const SLOW = ['--filter=delay', 'rdelay=300ms']
const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex')

interface World {
  readonly source: FakeSource
  readonly sshd: Sshd
  readonly dir: string
  readonly clone: CloneConfig
  /** What was run on the source so far. */
  commands(): string[]
}

/** The fake source behind a real sshd: its forced command leads to the sockets of gate and NBD server. */
async function aWorld(t: Test): Promise<World> {
  const source = await fakeSource({ vda: VDA, vdb: VDB })
  t.teardown(() => source[Symbol.asyncDispose]())
  const dir = sshFolder(t)
  const relay = path.join(dir, 'relay.cjs')
  writeFileSync(
    relay,
    "const s = require('net').connect(process.argv[2]); process.stdin.pipe(s); s.pipe(process.stdout); s.on('error', error => { console.error(error.message); process.exit(10) })",
  )
  const to = (socket: string): string => `exec ${process.execPath} ${relay} ${source.dir}/${socket}`
  const script = `echo "$SSH_ORIGINAL_COMMAND" >>${dir}/commands
test ! -e ${dir}/refusing || { echo "clone-server: client x is not authorized here" >&2; exit 11; }
case $SSH_ORIGINAL_COMMAND in
  gate) ${to('gate.sock')} ;;
  'nbd mydomain/'*@${TOKEN}) ${to('nbd.sock')} ;;
  *) exit 3 ;;
esac`
  const sshd = await startSshd(t, dir, { allow: forcedCommand(dir, 'forced', script) })
  knowHosts(dir, `[127.0.0.1]:${sshd.port} ${sshd.hostKey()}`)
  const config = cloneConfig(loadConfig(source.configFile), 'mydomain')
  const clone = { ...config, source: sourceAt(sshd) }
  const commands = (): string[] => readFileSync(`${dir}/commands`, 'utf8').trim().split('\n')
  return { source, sshd, dir, clone, commands }
}

function pullFrom({ clone }: World, options: Partial<PullOptions> = {}) {
  return pull(clone, {
    ...{ adopt: false, full: false, signal: never, log, watcher: NOBODY },
    ...options,
  })
}

/** Does something once, in the middle of the copy. */
function inTheMiddle(happen: () => unknown): Watcher {
  return {
    ...NOBODY,
    phase: name => {
      if (name === 'copy') setTimeout(() => void happen(), 100)
    },
  }
}

function checkImages(t: Test, dir: string): void {
  t.equal(sha256(readFileSync(path.join(dir, 'vda.raw'))), sha256(VDA))
  t.equal(sha256(readFileSync(path.join(dir, 'vdb.raw'))), sha256(VDB))
}

t.test('a pull goes through one key and one host, and leaves nothing behind', { skip }, async t => {
  const world = await aWorld(t)
  const { dir } = await pullFrom(world)
  checkImages(t, dir)
  const [gate, ...streams] = world.commands()
  t.equal(gate, 'gate')
  const wanted = ['vda', 'vdb'].map(target => `nbd mydomain/${target}@${TOKEN}`)
  t.strictSame([...new Set(streams)], wanted)
  for (const end = performance.now() + 20_000; world.source.gates() > 0;)
    if (performance.now() > end) throw new Error('the gate is still there')
    else await new Promise(resolve => setTimeout(resolve, 10))
  const planned = { domains: ['mydomain'], all: false, ifDue: false, adopt: false, full: false }
  const config = loadConfig(world.source.configFile)
  const { name, user, ...alpha } = world.clone.source
  t.ok(name && user)
  const there = { ...config, sources: { alpha } }
  const dry = { ...planned, dryRun: true }
  t.match(await pullCommand(there, dry, log, never, () => NOBODY), {
    exit: 0,
    results: [{ outcome: 'planned' }],
  })
  rmSync(path.join(world.dir, 'known_hosts'))
  t.match(await pullCommand(there, dry, log, never, () => NOBODY), {
    exit: 31,
    results: [{ failure: { code: 'UNSAFE' } }],
  })
})

t.test('a connection killed in the middle: gate or disks come back', { skip }, async t => {
  for (const [which, isGate] of [
    [0, true],
    [1, false],
  ] as const) {
    const world = await aWorld(t)
    await world.source.serveNbd(SLOW)
    let connections = 0
    const watcher = inTheMiddle(() => {
      connections = world.sshd.killConnections(which)
      // nbdkit may not outlive a client that leaves in the middle of a reply.
      if (!isGate) void world.source.serveNbd(SLOW)
    })
    const { dir } = await pullFrom(world, { watcher })
    t.equal(connections, 2, 'the gate has its own')
    checkImages(t, dir)
    const ran = world.commands()
    t.equal(ran.filter(command => command === 'gate').length, isGate ? 2 : 1)
    if (!isGate) t.ok(ran.filter(command => command.startsWith('nbd')).length >= 4, ran.join())
  }
})

t.test('a host that shows another key in the middle is not read from', { skip }, async t => {
  const world = await aWorld(t)
  await world.source.serveNbd(SLOW)
  makeKey(path.join(world.dir, 'new'))
  const other = readFileSync(path.join(world.dir, 'new.pub'), 'utf8')
  const watcher = inTheMiddle(() => {
    knowHosts(world.dir, `[127.0.0.1]:${world.sshd.port} ${other.trim()}`)
    world.sshd.killConnections()
  })
  await t.rejects(pullFrom(world, { watcher }), {
    code: 'UNSAFE',
    exit: 31,
    message: /when connecting again: the host key of 127.0.0.1 has changed/,
  })
})

t.test('a client that is refused is told why, and it is exit 11', { skip }, async t => {
  const world = await aWorld(t)
  writeFileSync(path.join(world.dir, 'refusing'), '')
  await t.rejects(pullFrom(world), {
    code: 'SOURCE_REFUSED',
    exit: 11,
    message: /its gate is gone: clone-server: client x is not authorized here/,
  })
  rmSync(path.join(world.dir, 'refusing'))
  const { handlers } = world.source
  const open = handlers['session.open']
  handlers['session.open'] = params => {
    writeFileSync(path.join(world.dir, 'refusing'), '')
    return open(params)
  }
  await t.rejects(pullFrom(world), {
    code: 'SOURCE_REFUSED',
    message: /client x is not authorized here/,
  })
})

t.test('a disk is read over as many streams as are busy, each for itself', { skip }, async t => {
  const world = await aWorld(t)
  await world.source.serveNbd(['--filter=delay', 'rdelay=100ms'])
  await using gate = await openGate(world.clone.source, never)
  // Only a gate that was greeted is replaced when it dies: it must be of the same host.
  const protocol = { min: 1, max: 1 }
  await gate.call('hello', { protocol, version: '0', clockMs: Date.now() })
  const lease = { token: TOKEN, signal: never, onLost: () => undefined, onRetry: () => undefined }
  t.teardown(gate.keepLease(lease))
  world.source.handlers.outcome = () => ({ state: 'frozen', disks: [], refusals: [] })
  const { recoveryPoint } = await gate.call('session.info', { token: TOKEN })
  const first = await connectDisk(gate.transport, world.clone, 'vda', TOKEN, never)
  const retries: Retry[] = []
  const disk = lastingDisk(first, 'vda', {
    ...{ gate, clone: world.clone, token: TOKEN, recoveryPoint: recoveryPoint.id },
    ...{ streams: 4, signal: never, onRetry: retry => retries.push(retry) },
  })
  const read = async (times: number): Promise<void> => {
    for (let time = 0; time < times; time++) {
      const all = Buffer.alloc(VDA.length)
      const reads: Promise<void>[] = []
      for (let at = 0; at < all.length; at += MIB / 2)
        reads.push(disk.read(at, all.subarray(at, at + MIB / 2)))
      await Promise.all(reads)
      t.equal(sha256(all), sha256(VDA))
    }
  }
  const streams = (): number => world.commands().filter(command => command.startsWith('nbd')).length
  for (const end = performance.now() + 20_000; streams() < 4 && performance.now() < end;)
    await read(1)
  await read(1)
  t.equal(streams(), 4)
  const reading = read(2)
  setTimeout(() => {
    world.sshd.killConnections()
    // nbdkit may not outlive a client that leaves in the middle of a reply.
    void world.source.serveNbd(['--filter=delay', 'rdelay=100ms'])
  }, 50)
  await reading
  t.ok(retries.length >= 1)
  await disk.disconnect()
})

/** A stream whose reads wait until they are let go. */
function aStream(name: string): DiskConnection & {
  readonly name: string
  readonly waiting: (() => void)[]
  readonly ended: unknown[]
} {
  const waiting: (() => void)[] = []
  const ended: unknown[] = []
  return {
    ...{ name, size: 100, waiting, ended },
    read: () => new Promise<void>(resolve => waiting.push(resolve)),
    disconnect: () => Promise.resolve(void ended.push('disconnected')),
    destroy: reason => void ended.push(reason),
  }
}

const soon = (): Promise<void> => new Promise(resolve => setImmediate(resolve))

t.test('a stream is added only while all that are there are busy', async t => {
  const [first, second, third] = [aStream('1'), aStream('2'), aStream('3')]
  const coming = [second, third]
  const disk = manyStreams(first, 2, () => Promise.resolve(coming.shift() ?? first))
  const one = new Uint8Array(1)
  const reads = [disk.read(0, one), disk.read(1, one)]
  await soon()
  t.equal(coming.length, 2, 'two reads are no reason')
  reads.push(disk.read(2, one))
  await soon()
  t.equal(coming.length, 1)
  reads.push(disk.read(3, one), disk.read(4, one), disk.read(5, one), disk.read(6, one))
  await soon()
  t.equal(coming.length, 1, 'no more than it may')
  t.strictSame([first.waiting.length, second.waiting.length], [4, 3])
  for (const { waiting } of [first, second]) for (const go of waiting) go()
  await Promise.all(reads)
  await disk.disconnect()
  t.strictSame([first.ended, second.ended, third.ended], [['disconnected'], ['disconnected'], []])
})

t.test('a stream that cannot be had is done without, unless it is unsafe', async t => {
  for (const [error, asked, ended] of [
    [new NbdError('CONNECT', 'nobody there'), 1, []],
    [new Failure('SOURCE_REFUSED', 'enough'), 1, []],
    [new Failure('UNSAFE', 'another host'), 1, ['another host']],
  ] as const) {
    const first = aStream('1')
    let tries = 0
    const disk = manyStreams(first, 8, () => {
      tries++
      return Promise.reject(error)
    })
    const reads = Array.from({ length: 6 }, () => disk.read(0, new Uint8Array(1)))
    await soon()
    reads.push(disk.read(0, new Uint8Array(1)))
    await soon()
    t.equal(tries, asked, error.message)
    t.strictSame(
      first.ended.map(one => (one as Error).message),
      ended,
    )
    for (const go of first.waiting) go()
    await Promise.all(reads)
  }
})

t.test('who destroys it destroys the stream that comes too late, too', async t => {
  const [first, late] = [aStream('1'), aStream('2')]
  let arrive: (stream: DiskConnection) => void = () => undefined
  const disk = manyStreams(first, 2, () => new Promise(resolve => (arrive = resolve)))
  for (let at = 0; at < 3; at++) void disk.read(at, new Uint8Array(1))
  const reason = new Error('over')
  disk.destroy(reason)
  arrive(late)
  await soon()
  t.strictSame(first.ended, [reason])
  t.equal(late.ended.length, 1)
})

t.test('how many streams a disk is worth', t => {
  for (const [roundTripMs, disks, streams] of [
    [0, 1, 1],
    [0.3, 2, 1],
    [8, 1, 1],
    [9, 1, 2],
    [25, 1, 4],
    [50, 1, 7],
    [50, 2, 7],
    [50, 4, 4],
    [300, 1, 8],
    [300, 16, 1],
    [300, 200, 1],
    [300, 0, 8],
  ] as const)
    t.equal(streamsPerDisk(roundTripMs, disks), streams, `${roundTripMs} ms, ${disks} disks`)
  t.end()
})
