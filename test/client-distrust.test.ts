// What a source says to have changed may be wrong, and what the clone holds may have gone bad: both are found, and stay known.

import t from 'tap'
import { randomBytes } from 'node:crypto'
import { readFile, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { everyChunk } from '../client/copy/wanted.ts'
import { CHUNK_SIZE, chunkLength } from '../shared/chunks.ts'
import { GRAIN, grainSet } from '../shared/grain-set.ts'
import { zeroDigest } from '../shared/zeros.ts'
import { refusing } from './client/fake-source.ts'
import { SIZE, tracked } from './client/tracked-source.ts'

for (const generations of ['copy', 'in-place'])
  t.test(
    `a bitmap that lies makes pulls compare until a human has looked: ${generations}`,
    async t => {
      const source = await tracked(t, randomBytes(SIZE), { generations })
      await source.pull()
      // Every clean chunk of so small a disk is in the sample.
      await source.write(3 * CHUNK_SIZE, randomBytes(10))
      source.says = grainSet(SIZE)
      const pulled = await source.pull()
      t.match(pulled.plan, [{ kind: 'hash', reason: /chunk 3 .* did not change/ }])
      const { store } = source
      const state = await source.state()
      t.match(state, { distrusted: { reason: /chunk 3/ } })
      t.match(pulled.alarm, /chunk 3/)
      const history = await readFile(path.join(store, 'mydomain', 'history.jsonl'), 'utf8')
      t.match(history, /"alarm":"disk vda: chunk 3/)

      source.says = undefined
      t.match((await source.pull()).plan, [
        { kind: 'hash', reason: /not trusted since .*--trust-tracking/ },
      ])
      t.match((await source.pull({ trustTracking: true })).plan, [{ kind: 'changed' }])
      const after = await source.state()
      t.equal(after.distrusted, undefined)
      t.ok((after.comparedAt ?? '') > (state.comparedAt ?? 'z'), 'the comparison is on record')
      t.match((await source.pull()).plan, [{ kind: 'changed' }])
    },
  )

t.test('what was found to be wrong is known although its pull came to nothing', async t => {
  const source = await tracked(t, randomBytes(SIZE))
  await source.pull()
  await source.write(3 * CHUNK_SIZE, randomBytes(10))
  source.says = grainSet(SIZE)
  const release = source.handlers['session.release']
  source.handlers['session.release'] = refusing('SOURCE_REFUSED', 'the lease lapsed')
  await t.rejects(source.pull())
  t.match(await source.state(), { distrusted: { reason: /chunk 3/ } })
  source.handlers['session.release'] = release
  source.says = undefined
  t.match((await source.pull()).plan, [{ kind: 'hash', reason: /not trusted since/ }])
})

t.test(
  'a bitmap that lacks some of a changed chunk publishes nothing, and is not believed again',
  async t => {
    const source = await tracked(t, randomBytes(SIZE))
    const { recoveryPoint } = await source.pull()
    await source.write(2 * CHUNK_SIZE, randomBytes(10))
    await source.write(2 * CHUNK_SIZE + 5 * GRAIN, randomBytes(10))
    source.says = grainSet(SIZE)
    source.says.mark(2 * CHUNK_SIZE, GRAIN)
    await t.rejects(source.pull(), {
      code: 'INTEGRITY',
      message: /disk vda: chunk 2 .* is not what the source has, although all was read/,
    })
    t.match(await source.state(), { distrusted: { reason: /chunk 2/ } })
    const current = path.join(source.store, 'mydomain', 'current', 'generation.json')
    t.match(await readFile(current, 'utf8'), recoveryPoint)
    t.match((await source.pull()).plan, [{ kind: 'hash', reason: /not trusted since/ }])
  },
)

t.test('a source that takes data for holes is found out by verify: source', async t => {
  const source = await tracked(t, randomBytes(SIZE), { verify: 'source' })
  const { handlers } = source
  const { digests } = handlers
  handlers.digests = async params =>
    params.whole
      ? digests(params)
      : {
          digests: Array.from({ length: params.count }, (_, at) =>
            zeroDigest(chunkLength(SIZE, params.chunk + at)),
          ),
        }
  handlers.allocation = () => ({ size: SIZE, extents: [], next: null })
  t.match((await source.pull()).plan, [{ kind: 'hash' }])
})

t.test('holes leave time for others', async t => {
  let others = 0
  const timer = setInterval(() => others++, 1)
  let chunks = 0
  for await (const { hole } of everyChunk(64 * 1024 * CHUNK_SIZE, grainSet(64 * 1024 * CHUNK_SIZE)))
    if (hole) chunks++
  clearInterval(timer)
  t.equal(chunks, 64 * 1024)
  t.ok(others > 5, `${others} times`)
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
  t.match(
    pulled.pruned.remove,
    [{ id: path.basename(dir) }],
    'damaged, so it is none of the two that are kept',
  )
})

t.test(
  'a chunk of the clone that went bad where nothing changed is found by the audit, and made good',
  async t => {
    for (const at of [2 * CHUNK_SIZE + 300_000, SIZE - 5]) {
      const source = await tracked(t, randomBytes(SIZE))
      const { dir } = await source.pull()
      const image = path.join(dir, 'vda.raw')
      const bytes = await readFile(image)
      bytes.writeUInt8(bytes.readUInt8(at) ^ 1, at)
      await writeFile(image, bytes)
      const pulled = await source.pull()
      t.match(pulled.plan, [{ kind: 'changed' }])
      t.match(pulled.pruned.remove, [{ id: path.basename(dir) }])
      t.notOk((await source.state()).distrusted, 'the source is not to blame')
    }
  },
)

t.test('a chunk that went bad and is written again as it was is made good', async t => {
  const content = randomBytes(SIZE)
  const source = await tracked(t, content)
  const { dir } = await source.pull()
  const image = path.join(dir, 'vda.raw')
  const bytes = await readFile(image)
  bytes.writeUInt8(bytes.readUInt8(CHUNK_SIZE + 700_000) ^ 1, CHUNK_SIZE + 700_000)
  await writeFile(image, bytes)
  await source.write(CHUNK_SIZE, content.subarray(CHUNK_SIZE, CHUNK_SIZE + 10))
  source.says = grainSet(SIZE)
  source.says.mark(CHUNK_SIZE, GRAIN)
  const pulled = await source.pull()
  t.match(pulled.plan, [{ kind: 'changed' }])
  t.match(
    pulled.pruned.remove,
    [{ id: path.basename(dir) }],
    'damaged, so it is none of the two that are kept',
  )
})
