// Pulls of a source that knows holes and changes: only what changed is received, the clone is the frozen base whatever the
// source says, and what lies is caught. The source is a fake, so that it can lie.

import t, { type Test } from 'tap'
import { pino } from 'pino'
import { randomBytes } from 'node:crypto'
import { open, readFile, truncate, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { CHUNK_SIZE } from '../shared/chunks.ts'
import { GRAIN, grainSet, type GrainSet } from '../shared/grain-set.ts'
import { NOBODY } from '../client/attempt.ts'
import { cloneConfig, loadConfig } from '../client/config/effective.ts'
import { pull } from '../client/pull.ts'
import type { Pulled } from '../client/pulled.ts'
import { layoutOf } from '../client/store/layout.ts'
import { readState } from '../client/store/state.ts'
import { fakeSource, type FakeSource } from './client/fake-source.ts'

const log = pino({ level: 'silent' })
const SIZE = 6 * CHUNK_SIZE + 12_288

interface Tracked extends FakeSource {
  /** What the source will say to have changed; undefined: what really did. */
  says: GrainSet | undefined
  /** Forget all that was recorded. */
  restart(): void
  pull(options?: { compare?: boolean; trustTracking?: boolean; full?: boolean }): Promise<Pulled>
  write(offset: number, bytes: Buffer): Promise<void>
}

const differences = (before: Buffer, now: Buffer): GrainSet => {
  const set = grainSet(now.length)
  for (let at = 0; at < now.length; at += GRAIN) {
    const end = Math.min(at + GRAIN, now.length)
    if (!now.subarray(at, end).equals(before.subarray(at, end))) set.mark(at, end - at)
  }
  return set
}

async function tracked(t: Test, content: Buffer): Promise<Tracked> {
  const source = await fakeSource({ vda: content })
  t.teardown(() => source[Symbol.asyncDispose]())
  await source.serveNbd()
  const points = new Map<string, Buffer>()
  const { handlers } = source
  const { hello } = handlers
  handlers.hello = async params => ({
    ...(await hello(params)),
    features: ['digests', 'allocation', 'changes'],
  })
  const file = source.file('vda')
  const answer = (set: GrainSet, at: number) => {
    // Pages of two, so that there are several.
    const all = [...set.extents(at)].map(([offset, length]) => [offset, length] as [number, number])
    return { size: set.size, extents: all.slice(0, 2), next: all[2]?.[0] ?? null }
  }
  handlers.allocation = async ({ at }) => {
    const now = await readFile(file)
    return answer(differences(Buffer.alloc(now.length), now), at)
  }
  const self: Tracked = Object.assign(source, {
    says: undefined as GrainSet | undefined,
    restart: () => points.clear(),
    async pull(options = {}) {
      const clone = cloneConfig(loadConfig(source.configFile), 'mydomain')
      const { signal } = new AbortController()
      const pulled = await pull(clone, {
        ...{ adopt: false, full: false, signal, log, watcher: NOBODY },
        ...options,
      })
      const base = await readFile(file)
      points.set(pulled.recoveryPoint, base)
      const image = await readFile(path.join(pulled.dir, 'vda.raw'))
      t.ok(image.equals(base), 'the clone is the frozen base')
      return pulled
    },
    async write(offset: number, bytes: Buffer) {
      const handle = await open(file, 'r+')
      await handle.write(bytes, 0, bytes.length, offset)
      await handle.close()
    },
  })
  handlers.changes = async ({ since, at }) => {
    const before = points.get(since)
    if (!before) return { reason: 'the guest was started anew', extents: [], next: null }
    return answer(self.says ?? differences(before, await readFile(file)), at)
  }
  return self
}

t.test('holes are not received, and a second pull receives only what changed', async t => {
  const content = Buffer.alloc(SIZE)
  randomBytes(2 * CHUNK_SIZE).copy(content, CHUNK_SIZE)
  const source = await tracked(t, content)
  const first = await source.pull()
  t.match(first.plan, [{ kind: 'full', reason: 'first pull' }])
  t.equal(first.bytes.read, 2 * CHUNK_SIZE)

  await source.write(CHUNK_SIZE + GRAIN, randomBytes(100))
  await source.write(5 * CHUNK_SIZE, randomBytes(GRAIN + 1))
  const second = await source.pull()
  t.match(second.plan, [{ kind: 'changed', reason: /^192 KiB changed since / }])
  t.equal(second.bytes.read, 3 * GRAIN)
  t.equal(second.bytes.hashed, 0)

  const third = await source.pull()
  t.match(third.plan, [{ kind: 'changed' }])
  t.equal(third.bytes.read, 0)
})

t.test('zeros over old data are zeros, given back and not received', async t => {
  const source = await tracked(t, randomBytes(SIZE))
  await source.pull()
  await source.write(CHUNK_SIZE, Buffer.alloc(2 * CHUNK_SIZE))
  await source.write(4 * CHUNK_SIZE + GRAIN, Buffer.alloc(GRAIN))
  t.equal((await source.pull()).bytes.read, GRAIN)
})

t.test('a disk that grows or shrinks is right to its last byte', async t => {
  const source = await tracked(t, randomBytes(SIZE))
  await source.pull()
  for (const size of [
    SIZE + 5 * 4096,
    SIZE - CHUNK_SIZE,
    2 * CHUNK_SIZE,
    2 * CHUNK_SIZE + 4096,
    SIZE,
  ]) {
    await truncate(source.file('vda'), size)
    if (size > 4096) await source.write(size - 4096, randomBytes(4096))
    t.match((await source.pull()).plan, [{ kind: 'changed' }], String(size))
  }
})

t.test('what was not recorded is compared by hash, and the reason is in the plan', async t => {
  const source = await tracked(t, randomBytes(SIZE))
  await source.pull()
  source.restart()
  await source.write(0, randomBytes(10))
  const pulled = await source.pull()
  t.match(pulled.plan, [{ kind: 'hash', reason: /compared with .*; the guest was started anew/ }])
  t.equal(pulled.bytes.read, CHUNK_SIZE)
})

t.test('a bitmap that lies turns the pull into a comparison, until a human has looked', async t => {
  const source = await tracked(t, randomBytes(SIZE))
  await source.pull()
  // Every clean chunk of so small a disk is in the sample.
  await source.write(3 * CHUNK_SIZE, randomBytes(10))
  source.says = grainSet(SIZE)
  const pulled = await source.pull()
  t.match(pulled.plan, [{ kind: 'hash', reason: /chunk 3 .* did not change/ }])
  const { store } = source
  const state = () => readState(layoutOf(path.join(store, 'mydomain')))
  t.match(await state(), { distrusted: { reason: /chunk 3/ } })
  const history = await readFile(path.join(store, 'mydomain', 'history.jsonl'), 'utf8')
  t.match(history, /"alarm":"disk vda: chunk 3/)

  source.says = undefined
  t.match((await source.pull()).plan, [
    { kind: 'hash', reason: /not trusted since .*--trust-tracking/ },
  ])
  t.match((await source.pull({ trustTracking: true })).plan, [{ kind: 'changed' }])
  t.equal((await state()).distrusted, undefined)
  t.match((await source.pull()).plan, [{ kind: 'changed' }])
})

t.test('a disk that shrank and grew back behind its bitmap is found by its last chunk', async t => {
  const source = await tracked(t, randomBytes(40 * CHUNK_SIZE))
  await source.pull()
  await source.write(39 * CHUNK_SIZE, Buffer.alloc(CHUNK_SIZE))
  source.says = grainSet(40 * CHUNK_SIZE)
  t.match((await source.pull()).plan, [{ kind: 'hash', reason: /chunk 39/ }])
})

t.test('a chunk of the clone that went bad is received whole, not given a new digest', async t => {
  const source = await tracked(t, randomBytes(SIZE))
  const { dir } = await source.pull()
  const image = path.join(dir, 'vda.raw')
  const bytes = await readFile(image)
  bytes.writeUInt8(bytes.readUInt8(CHUNK_SIZE + 700_000) ^ 1, CHUNK_SIZE + 700_000)
  await writeFile(image, bytes)
  await source.write(CHUNK_SIZE, randomBytes(10))
  const pulled = await source.pull()
  t.match(pulled.plan, [{ kind: 'changed' }])
  t.equal(pulled.bytes.read, CHUNK_SIZE)
})

t.test('a comparison is made when asked for, and when the last one is too old', async t => {
  const source = await tracked(t, randomBytes(SIZE))
  await source.pull()
  t.match((await source.pull({ compare: true })).plan, [
    { kind: 'hash', reason: /--compare was given/ },
  ])
  const config = await readFile(source.configFile, 'utf8')
  await writeFile(source.configFile, config.replace('stall: 5s', 'stall: 5s, fullCompareEvery: 1s'))
  await new Promise(resolve => setTimeout(resolve, 1100))
  t.match((await source.pull()).plan, [{ kind: 'hash', reason: /the last comparison was/ }])
})

t.test('whatever a guest does, the clone is its disk', async t => {
  const seed = Number(process.env['SEED'] ?? Date.now() % 1_000_000)
  t.comment(`seed ${seed}`)
  let state = seed
  const dice = (n: number): number => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) & 0x7fffffff
    return (state >> 8) % n
  }
  let size = SIZE
  const source = await tracked(t, randomBytes(SIZE))
  await source.pull()
  for (let round = 0; round < 12; round++) {
    for (let write = dice(6); write > 0; write--) {
      const offset = dice(size)
      const length = Math.min(1 + dice(3 * GRAIN), size - offset)
      await source.write(offset, dice(3) === 0 ? Buffer.alloc(length) : randomBytes(length))
    }
    if (dice(4) === 0) await truncate(source.file('vda'), (size = 4096 * (1 + dice(2000))))
    if (dice(4) === 0) source.restart()
    await source.pull({ compare: dice(6) === 0, full: dice(8) === 0 })
  }
})
