// The source's digests over the gate: what the standby asks for and when, what it believes, and how they are computed.

import t, { type Test } from 'tap'
import { ROOT } from './lab/names.ts'
import { execFileSync, spawn } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { mkdtemp, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { sourceDigests } from '../client/source/digests.ts'
import { pino } from 'pino'
import { openGate, type Gate } from '../client/source/gate.ts'
import { cloneConfig, loadConfig } from '../client/config/effective.ts'
import { chunkCount } from '../shared/chunks.ts'
import { Failure } from '../shared/failures.ts'
import { GATE } from '../shared/gate.ts'
import { openersOf } from '../shared/host/openers.ts'
import { createHasher, type Hasher, type HashingPolicy } from '../server/digest/hasher.ts'
import { HASHER } from '../server/digest/words.ts'
import { grainSet, type GrainSet } from '../shared/grain-set.ts'
import { frozenDigests } from '../server/gate/digests.ts'
import { askServe } from '../server/serve/client.ts'
import type { Frozen } from '../server/session/begin.ts'
import { createLease, type Lease } from '../server/session/lease.ts'
import { isReader } from '../server/session/recover.ts'
import { createSession, isHeld, movedBy, type Session } from '../server/session/session.ts'
import { aDevice } from './client/medium.ts'
import { fakeSource, refusing, TOKEN } from './client/fake-source.ts'

const MIB = 1024 * 1024
const never = new AbortController().signal
const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex')

function digestsOf(bytes: Buffer): string[] {
  return Array.from({ length: chunkCount(bytes.length) }, (_, at) =>
    sha256(bytes.subarray(at * MIB, (at + 1) * MIB)),
  )
}

/** A gate that gives each chunk's number for its digest, and keeps what was asked: `[first, count]`. */
function countingGate(answer = numbered) {
  const asked: [number, number][] = []
  const most = { inFlight: 0 }
  let inFlight = 0
  const call = async (_method: string, { chunk, count }: { chunk: number; count: number }) => {
    asked.push([chunk, count])
    most.inFlight = Math.max(most.inFlight, ++inFlight)
    await delay(1)
    inFlight--
    return { digests: answer(chunk, count) }
  }
  return { gate: { call } as unknown as Pick<Gate, 'call'>, asked, most }
}
const numbered = (chunk: number, count: number): string[] =>
  Array.from({ length: count }, (_, at) => String(chunk + at))

t.test('the standby: digests of a disk', async t => {
  const source = await fakeSource({
    vda: Buffer.concat([randomBytes(2 * MIB), Buffer.alloc(MIB), randomBytes(777)]),
  })
  const { source: alpha } = cloneConfig(loadConfig(source.configFile), 'mydomain')
  t.teardown(() => source[Symbol.asyncDispose]())
  const gate = await openGate(alpha, never)
  t.teardown(() => gate[Symbol.asyncDispose]())
  const bytes = await readFile(source.file('vda'))
  const digests = sourceDigests(gate, TOKEN, 'vda', bytes.length, never)

  t.test('are those of its exported bytes, the last chunk at its real length', async t => {
    t.strictSame(await digests(0, 4), digestsOf(bytes))
    t.strictSame(await digests(3, 1), digestsOf(bytes).slice(3))
  })

  t.test('what does not lie on the disk is never asked for', async t => {
    const before = source.calls.length
    for (const [chunk, count] of [
      ...[
        [-1, 1],
        [0, 0],
        [4, 1],
        [3, 2],
      ],
      [0, 1025],
    ] as [number, number][])
      await t.rejects(digests(chunk, count), RangeError, `${count} from ${chunk}`)
    t.equal(source.calls.length, before)
  })

  t.test('an answer is checked: number and form', async t => {
    const { handlers } = source
    const real = handlers.digests
    t.teardown(() => Object.assign(handlers, { digests: real }))
    const good = 'a'.repeat(64)
    for (const [answer, said] of [
      [[good], /gave 1 digests of disk vda for 2 chunks/],
      [[good, good, good], /gave 3 digests/],
      [[], /gave 0 digests/],
      [[good, 'a'.repeat(63)], /answered digests wrongly: digests.1: a digest is 64 hex digits/],
      [[good, 'A'.repeat(64)], /answered digests wrongly/],
      [Array.from({ length: 1025 }, () => good), /answered digests wrongly/],
    ] as [string[], RegExp][]) {
      handlers.digests = () => ({ digests: answer })
      await t.rejects(digests(0, 2), { code: 'TRANSFER', message: said })
    }
  })

  t.test("the source's refusal, and the user's, pass through", async t => {
    const { handlers } = source
    const real = handlers.digests
    t.teardown(() => Object.assign(handlers, { digests: real }))
    handlers.digests = refusing('SOURCE_REFUSED', 'the session of this token is over')
    await t.rejects(digests(0, 1), { code: 'SOURCE_REFUSED', message: /token is over/ })
    const stopped = AbortSignal.abort(new Failure('INTERRUPTED', 'stopped'))
    await t.rejects(sourceDigests(gate, TOKEN, 'vda', 1, stopped)(0, 1), { code: 'INTERRUPTED' })
  })
})

t.test('who reads in order is read ahead for', async t => {
  const { gate, asked, most } = countingGate()
  const digests = sourceDigests(gate, TOKEN, 'vda', 2000 * MIB, never)
  const all: string[] = []
  for (let chunk = 0; chunk < 2000; chunk += 100) all.push(...(await digests(chunk, 100)))
  t.strictSame(all, numbered(0, 2000))
  const covered = asked.flatMap(([first, count]) => numbered(first, count))
  t.strictSame(covered, numbered(0, 2000), 'each chunk is hashed once, in order')
  t.strictSame(asked.slice(0, 3), [
    ...[
      [0, 100],
      [100, 256],
    ],
    [356, 256],
  ])
  t.equal(most.inFlight, 2)
})

t.test('calls may overlap: the answers are right, and no more than two are under way', async t => {
  const { gate, asked, most } = countingGate()
  const digests = sourceDigests(gate, TOKEN, 'vda', 3000 * MIB, never)
  const calls = Array.from({ length: 3000 }, (_, chunk) => digests(chunk, 1))
  t.strictSame((await Promise.all(calls)).flat(), numbered(0, 3000))
  t.strictSame(
    asked.flatMap(([first, count]) => numbered(first, count)),
    numbered(0, 3000),
  )
  t.equal(most.inFlight, 2)
})

t.test('single chunks here and there cost no more than themselves', async t => {
  const { gate, asked } = countingGate()
  const digests = sourceDigests(gate, TOKEN, 'vda', 3000 * MIB, never)
  for (const chunk of [2999, 5, 700, 0]) t.strictSame(await digests(chunk, 1), [String(chunk)])
  t.strictSame(asked, [
    ...[
      [2999, 1],
      [5, 1],
      [700, 1],
    ],
    [0, 1],
  ])
})

t.test('a jump back after reading in order gives the right chunks', async t => {
  const { gate } = countingGate()
  const digests = sourceDigests(gate, TOKEN, 'vda', 3000 * MIB, never)
  for (const [chunk, count] of [
    ...[
      [1000, 10],
      [1010, 10],
      [1020, 1],
      [0, 10],
      [10, 600],
      [610, 1],
    ],
    [1020, 5],
  ] as [number, number][])
    t.strictSame(await digests(chunk, count), numbered(chunk, count), `${count} from ${chunk}`)
})

t.test(
  'what failed ahead of time is told when it is wanted, and asked again after that',
  async t => {
    let good = true
    const { gate } = countingGate((chunk, count) => {
      if (!good) throw new Failure('SOURCE_REFUSED', 'not now')
      return numbered(chunk, count)
    })
    const digests = sourceDigests(gate, TOKEN, 'vda', 1000 * MIB, never)
    await digests(0, 1)
    await digests(1, 200)
    good = false
    await t.resolves(digests(201, 50), 'this batch was there already')
    await t.rejects(digests(251, 300), { code: 'SOURCE_REFUSED' })
    good = true
    t.strictSame(await digests(251, 300), numbered(251, 300))
  },
)

t.test('a source of another version is understood', async t => {
  const hello = { protocol: 1, version: '0.1.0', clockMs: 1, role: 'source', epoch: 0 }
  const hostId = '6b0f2d7e-3b57-4c83-9e0c-2f1f0f4b6a01'
  const { result } = GATE.hello
  t.equal(result.parse({ ...hello, hostId }).features, undefined, 'an older one')
  const newer = result.parse({ ...hello, hostId, features: ['digests', 'later'], more: true })
  t.strictSame(newer.features, ['digests', 'later'], 'a newer one')
  t.notOk(result.safeParse({ ...hello, hostId, features: ['x'.repeat(51)] }).success)
  const disk = { target: 'vda', exported: true }
  const described = (disks: object[]) =>
    GATE.describe.result.safeParse({ domain: 'd', uuid: hostId, state: 'running', disks })
  t.equal(described([disk]).data?.disks[0]?.allocated, undefined)
  t.equal(described([{ ...disk, allocated: 4096 }]).data?.disks[0]?.allocated, 4096)
  t.notOk(described([{ ...disk, allocated: -1 }]).success)
  t.notOk(described(Array.from({ length: 257 }, () => disk)).success, 'no end of disks')
})

const log = pino({ level: 'silent' })
const GIB = 1024 ** 3
/** Sparse, and more than is hashed while a test runs. */
const ENDLESS = 4096 * GIB

async function folder(t: Test, parent = tmpdir()): Promise<string> {
  const made = await mkdtemp(path.join(parent, 'nbd-clone-test-'))
  t.teardown(() => rm(made, { recursive: true, force: true }))
  return made
}

async function image(t: Test, content: Buffer, size = content.length): Promise<string> {
  const file = path.join(await folder(t), 'base')
  await writeFile(file, content)
  await truncate(file, size)
  return file
}

const ONE: HashingPolicy = { processors: 1, rate: 'off' }

function aHasher(t: Test, policy = ONE): Hasher {
  const hasher = createHasher(log, policy)
  t.teardown(() => hasher.end())
  return hasher
}

/** Processes of that name whose parent is `parent`, as [pid, nice]. */
async function hashersOf(parent: number): Promise<[pid: string, nice: string][]> {
  const pids = (await readdir('/proc')).filter(name => /^\d+$/.test(name))
  return pids.flatMap(pid => {
    try {
      const [, comm, rest = ''] =
        /^\d+ \((.*)\) (.*)/.exec(readFileSync(`/proc/${pid}/stat`, 'utf8')) ?? []
      const fields = rest.split(' ')
      return comm === HASHER && fields[1] === String(parent)
        ? [[pid, fields[16] ?? ''] as [string, string]]
        : []
    } catch {
      return []
    }
  })
}

async function until(what: string, holds: () => Promise<boolean>, seconds = 20): Promise<void> {
  const end = Date.now() + seconds * 1000
  while (!(await holds())) {
    if (Date.now() > end) throw new Error(`not within ${seconds} s: ${what}`)
    await delay(20)
  }
}

/** The whole of it, until the signal: this never ends by itself. */
const endless = (hasher: Hasher, base: string, signal = never): Promise<string[]> =>
  hasher.digests({ base, size: ENDLESS, chunk: 0, count: ENDLESS / MIB }, signal)

/** For tests that leave it as it was: a start costs a second. */
const lasting = createHasher(log, ONE)
t.teardown(() => lasting.end())

t.test('the hasher: one process of low priority, right to the byte', async t => {
  const bytes = Buffer.concat([
    randomBytes(5 * MIB),
    Buffer.alloc(20 * MIB),
    randomBytes(4 * MIB + 7),
  ])
  const base = await image(t, bytes)
  const zeros = Buffer.alloc(2 * MIB + 512)
  const hole = await image(t, Buffer.alloc(0), zeros.length)
  const hasher = lasting
  t.strictSame(await hashersOf(process.pid), [], 'nothing runs before it is asked')
  const whole = { base, size: bytes.length, chunk: 0, count: 30 }
  const [first, holes, last] = await Promise.all([
    hasher.digests(whole, never),
    hasher.digests({ base: hole, size: zeros.length, chunk: 0, count: 3 }, never),
    hasher.digests({ ...whole, chunk: 29, count: 1 }, never),
  ])
  t.strictSame(first, digestsOf(bytes))
  t.strictSame(holes, digestsOf(zeros))
  t.strictSame(last, digestsOf(bytes).slice(29))
  t.equal(hasher.hashed(), bytes.length + zeros.length + (bytes.length % MIB))
  t.strictSame(
    (await hasher.digests({ ...whole, size: 3 * MIB + 100, chunk: 3, count: 1 }, never))[0],
    sha256(bytes.subarray(3 * MIB, 3 * MIB + 100)),
    'no more of a file than was frozen',
  )
  const [[pid, nice] = ['', ''], ...others] = await hashersOf(process.pid)
  t.strictSame([nice, others], ['10', []])
  t.match(execFileSync('ionice', ['-p', pid], { encoding: 'utf8' }), 'best-effort: prio 7')
  t.strictSame(await openersOf(base), [], 'nothing is open that is not being hashed')
})

t.test('the hasher reads a file system without direct I/O, and a block device', async t => {
  const bytes = randomBytes(3 * MIB + 512)
  const shm = path.join(await folder(t, '/dev/shm'), 'base')
  await writeFile(shm, bytes)
  const device = await aDevice(t, bytes.length)
  await writeFile(device, bytes)
  const hasher = lasting
  for (const base of [shm, device])
    t.strictSame(
      await hasher.digests({ base, size: bytes.length, chunk: 0, count: 4 }, never),
      digestsOf(bytes),
      base,
    )
})

t.test('the hasher is gone when it is ended, whatever it is doing', async t => {
  const base = await image(t, Buffer.alloc(0), ENDLESS)
  const others = await hashersOf(process.pid)
  const hasher = aHasher(t)
  const asked = t.rejects(endless(hasher, base), { code: 'TRANSFER', message: /ended \(SIGKILL\)/ })
  await until('it hashes', () => Promise.resolve(hasher.hashed() > 0))
  t.match(await openersOf(base), [{ command: HASHER, writes: false }])
  t.ok((await openersOf(base)).every(isReader), 'recovery would end it')
  await hasher.end()
  t.strictSame(await openersOf(base), [])
  await asked
  await t.rejects(endless(hasher, base), { code: 'SOURCE_REFUSED', message: 'the session is over' })
  t.strictSame(await hashersOf(process.pid), others, 'and does not come back')
})

t.test('what nobody waits for is not hashed any further', async t => {
  const base = await image(t, Buffer.alloc(0), ENDLESS)
  const hasher = lasting
  const client = new AbortController()
  const asked = [0, 1, 2].map(() => endless(hasher, base, client.signal))
  const refused = asked.map(one => t.rejects(one, { message: 'gone' }))
  await until('it hashes', async () => (await openersOf(base)).some(isReader))
  client.abort(new Error('gone'))
  await Promise.all(refused)
  await hasher.digests({ base, size: ENDLESS, chunk: 7, count: 1 }, never)
  await until('it lets go', async () => (await openersOf(base)).length === 0)
  const before = hasher.hashed()
  await delay(300)
  t.equal(hasher.hashed(), before)
})

t.test('a killed hasher fails what it was asked, and the next question starts another', async t => {
  const base = await image(t, Buffer.alloc(0), ENDLESS)
  const hasher = aHasher(t)
  const asked = t.rejects(endless(hasher, base), {
    code: 'TRANSFER',
    message: "the source's process that computes digests ended (SIGKILL)",
  })
  await until('it hashes', () => Promise.resolve(hasher.hashed() > 0))
  const [opener] = await openersOf(base)
  process.kill(opener?.pid ?? NaN, 'SIGKILL')
  await asked
  const [digest] = await hasher.digests({ base, size: ENDLESS, chunk: 0, count: 1 }, never)
  t.equal(digest, sha256(Buffer.alloc(MIB)))
})

t.test('a base that cannot be read is told, and hides nothing behind it', async t => {
  const bytes = randomBytes(2 * MIB)
  const base = await image(t, bytes)
  const hasher = lasting
  for (const [asked, message] of [
    [{ base: `${base}-not`, size: MIB, chunk: 0, count: 1 }, /cannot read .*base-not: ENOENT/],
    [{ base, size: 9 * MIB, chunk: 0, count: 9 }, /it is shorter than it was/],
    [{ base, size: 2 * MIB + 1, chunk: 2, count: 1 }, /it is shorter than it was/],
  ] as const)
    await t.rejects(hasher.digests(asked, never), { code: 'TRANSFER', message })
  t.strictSame(
    await hasher.digests({ base, size: bytes.length, chunk: 0, count: 2 }, never),
    digestsOf(bytes),
  )
})

t.test('a hasher of several processors is right to the byte too', async t => {
  const bytes = randomBytes(40 * MIB + 5)
  const base = await image(t, bytes)
  const hasher = aHasher(t, { processors: 3, rate: 'off' })
  const digests = await hasher.digests({ base, size: bytes.length, chunk: 0, count: 41 }, never)
  t.strictSame(digests, digestsOf(bytes))
})

t.test('a hasher keeps to its rate', async t => {
  const base = await image(t, Buffer.alloc(0), 24 * MIB)
  const hasher = aHasher(t, { processors: 1, rate: 8 * MIB })
  const ask = (count: number) => hasher.digests({ base, size: 24 * MIB, chunk: 0, count }, never)
  await ask(8)
  const began = performance.now()
  await ask(16)
  const seconds = (performance.now() - began) / 1000
  // A quarter of a second's worth may go at once; a busy machine only makes it slower.
  t.ok(seconds > 1.5, `16 MiB at 8 MiB/s took ${seconds.toFixed(2)} s`)
})

t.test('a hasher dies with its serve, however that dies', async t => {
  const base = await image(t, Buffer.alloc(0), ENDLESS)
  const hasherFile = path.join(ROOT, 'dist', 'server', 'digest', 'hasher.js')
  const script = path.join(await folder(t), 'serve.mjs')
  await writeFile(
    script,
    `import { createHasher } from ${JSON.stringify(hasherFile)}
    const asked = { base: process.argv[2], size: ${ENDLESS}, chunk: 0, count: ${ENDLESS / MIB} }
    await createHasher({ debug() {} }, { processors: 1, rate: 'off' }).digests(asked, new AbortController().signal)`,
  )
  const serve = spawn(process.execPath, [script, base], {
    cwd: ROOT,
    stdio: ['ignore', 'ignore', 'inherit'],
  })
  t.teardown(() => serve.kill('SIGKILL'))
  await until('it hashes', async () => (await openersOf(base)).some(isReader))
  serve.kill('SIGKILL')
  await once(serve, 'exit')
  await until('it is gone', async () => (await openersOf(base)).length === 0, 5)
})

/** A session of one disk on this base, held by a lease of the gate. */
function aSession(hasher: Hasher, base: string, size: number): { lease: Lease; session: Session } {
  const disks = [{ target: 'vda', format: 'raw', size, base }]
  const session = createSession('mydomain', { disks } as unknown as Frozen, hasher)
  const lease = createLease('mydomain', 'standby', 'gate')
  Object.assign(lease, { session, state: 'live' })
  session.leases.add(lease)
  return { lease, session }
}

t.test('the gate: digests are for whoever holds a frozen session, of its disks only', async t => {
  const bytes = randomBytes(3 * MIB + 5)
  const base = await image(t, bytes)
  const { lease, session } = aSession(lasting, base, bytes.length)
  const before = movedBy(session)
  const ask = (target: string, chunk: number, count: number) =>
    frozenDigests(lease, { target, chunk, count }, never)
  await t.rejects(ask('vdb', 0, 1), {
    code: 'SOURCE_REFUSED',
    message: 'the session has no disk vdb',
  })
  await t.rejects(ask('vda', 0, 5), { code: 'USAGE', message: 'disk vda has 4 chunks, not 5' })
  await t.rejects(ask('vda', Number.MAX_SAFE_INTEGER, 1), { code: 'USAGE' })
  t.equal(movedBy(session), before, 'none of these reads anything')
  t.strictSame(await ask('vda', 0, 4), digestsOf(bytes))
  t.equal(movedBy(session) - before, bytes.length, 'what is hashed is progress')
  t.equal(lease.hashing, 0)
  session.leases.clear()
  t.notOk(isHeld(session), 'a hasher holds no session')
  lease.state = 'released'
  await t.rejects(ask('vda', 0, 1), { code: 'SOURCE_REFUSED', message: /is over/ })
  t.equal(movedBy(session) - before, bytes.length)
})

const allData = (size: number): GrainSet => {
  const set = grainSet(size)
  set.mark(0, size)
  return set
}

t.test('the gate: holes are answered without being read', async t => {
  const bytes = Buffer.concat([randomBytes(MIB), Buffer.alloc(2 * MIB), randomBytes(MIB + 5)])
  const base = await image(t, bytes)
  const { lease, session } = aSession(lasting, base, bytes.length)
  const data = grainSet(bytes.length)
  data.mark(0, MIB)
  data.mark(3 * MIB, MIB + 5)
  session.allocations.set('vda', Promise.resolve(data))
  const before = movedBy(session)
  const hashed = session.hasher.hashed()
  const asked = { target: 'vda', chunk: 0, count: 5 }
  t.strictSame(await frozenDigests(lease, asked, never), digestsOf(bytes))
  t.equal(session.hasher.hashed() - hashed, 2 * MIB + 5)
  t.equal(movedBy(session) - before, bytes.length, 'but they are progress')

  // A file system that takes data for a hole: who wants to be certain asks for all.
  session.allocations.set('vda', Promise.resolve(grainSet(bytes.length)))
  t.notSame(await frozenDigests(lease, asked, never), digestsOf(bytes))
  t.strictSame(await frozenDigests(lease, { ...asked, whole: true }, never), digestsOf(bytes))
})

t.test('the gate: so much at once and no more', async t => {
  const base = await image(t, Buffer.alloc(0), ENDLESS)
  const { lease, session } = aSession(lasting, base, ENDLESS)
  // Holes would be answered at once.
  session.allocations.set('vda', Promise.resolve(allData(ENDLESS)))
  const client = new AbortController()
  const asked = [1, 2, 3, 4].map(() =>
    t.rejects(
      frozenDigests(lease, { target: 'vda', chunk: 0, count: ENDLESS / MIB }, client.signal),
      { message: 'gone' },
    ),
  )
  await t.rejects(frozenDigests(lease, { target: 'vda', chunk: 0, count: 1 }, never), {
    code: 'SOURCE_REFUSED',
    message: '4 digests are asked for already',
  })
  client.abort(new Error('gone'))
  await Promise.all(asked)
  t.equal((await frozenDigests(lease, { target: 'vda', chunk: 0, count: 1 }, never)).length, 1)
})

t.test('the gate: a session that ends while it is hashed answers with the reason', async t => {
  const base = await image(t, Buffer.alloc(0), ENDLESS)
  const { lease, session } = aSession(aHasher(t), base, ENDLESS)
  session.allocations.set('vda', Promise.resolve(allData(ENDLESS)))
  const asked = t.rejects(
    frozenDigests(lease, { target: 'vda', chunk: 0, count: 1024 * 1024 }, never),
    {
      code: 'SOURCE_REFUSED',
      message: 'the session of this token is over: the domain was started',
    },
  )
  await until('it hashes', () => Promise.resolve(session.hasher.hashed() > 0))
  session.state = 'merging'
  Object.assign(lease, {
    state: 'ended',
    reason: new Failure('SOURCE_REFUSED', 'the domain was started'),
  })
  await session.hasher.end()
  await asked
  t.strictSame(await openersOf(base), [])
})

t.test('a serve that hangs does not make status hang', async t => {
  const socket = path.join(await folder(t), 'serve.sock')
  const mute = createServer(() => undefined).listen(socket)
  await once(mute, 'listening')
  t.teardown(() => mute.close())
  await t.rejects(askServe(socket, { role: 'operator' }, 'operator.status', {}, 200), {
    code: 'SOURCE_UNREACHABLE',
    message: 'clone-server serve runs but does not answer within 0.2 s',
    remedy: /systemctl restart clone-server/,
  })
})
