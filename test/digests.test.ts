// The source's digests over the gate: what the standby asks for and when, what it believes, and how they are computed.

import t from 'tap'
import { createHash, randomBytes } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { setTimeout as delay } from 'node:timers/promises'
import { sourceDigests } from '../client/source/digests.ts'
import { openGate, type Gate } from '../client/source/gate.ts'
import { cloneConfig, loadConfig } from '../client/config/effective.ts'
import { chunkCount } from '../shared/chunks.ts'
import { Failure } from '../shared/failures.ts'
import { GATE } from '../shared/gate.ts'
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
  const gate = await openGate(alpha)
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
