// Pulls of a source that knows holes and changes: only what changed is received, the clone is the frozen base whatever the
// source says, and what lies is caught. The source is a fake, so that it can lie.

import t from 'tap'
import { randomBytes } from 'node:crypto'
import { readFile, truncate, writeFile } from 'node:fs/promises'
import { CHUNK_SIZE } from '../shared/chunks.ts'
import { GRAIN } from '../shared/grain-set.ts'
import { SIZE, tracked } from './client/tracked-source.ts'

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

t.test('onto a copy of the last generation only what changed is written', async t => {
  const source = await tracked(t, randomBytes(SIZE), { generations: 'copy' })
  await source.pull()
  await source.write(CHUNK_SIZE + 3 * GRAIN, randomBytes(GRAIN + 1))
  await source.write(CHUNK_SIZE + 8 * GRAIN, Buffer.alloc(GRAIN))
  await source.write(SIZE - 100, randomBytes(100))
  const { bytes } = await source.pull()
  t.equal(bytes.read, 3 * GRAIN + (SIZE % CHUNK_SIZE))
  t.equal(bytes.written, 2 * GRAIN + (SIZE % CHUNK_SIZE), 'and zeros are given back')
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
