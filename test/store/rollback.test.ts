// Rollback on a real file system: an older generation becomes current, the newer are kept, and prune keeps all readable.

import t from 'tap'
import { spawn } from 'node:child_process'
import { closeSync, openSync, writeSync } from 'node:fs'
import { mkdir, readdir, rm, stat, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { NOBODY } from '../../client/attempt.ts'
import { rollbackCommand } from '../../client/commands/rollback.ts'
import { pruneCommand } from '../../client/commands/prune.ts'
import { cloneConfig, type CloneConfig } from '../../client/config/effective.ts'
import { openPool } from '../../client/copy/pool.ts'
import { standbySchema } from '../../client/config/schema.ts'
import { CHUNK_SIZE } from '../../client/plan.ts'
import { markDamaged } from '../../client/store/damage.ts'
import { soundGenerations } from '../../client/store/generation.ts'
import { layoutOf, makeFolders, type Layout } from '../../client/store/layout.ts'
import { checkPatchable } from '../../client/store/rollback.ts'
import { readState, writeState } from '../../client/store/state.ts'
import {
  aDisk,
  bytesOf,
  changed,
  currentOf,
  depthOf,
  idOf,
  publishAll,
  publishStaged,
  stage,
  type Contents,
} from '../client/generations.ts'
import { aMedium } from '../client/medium.ts'

const never = new AbortController().signal
const pool = openPool(1)
t.teardown(() => pool[Symbol.asyncDispose]())
const medium = await aMedium(t, 'ext4', 512)

/** Four generations of two disks, the second of which grows and shrinks. */
function fourOf(): Contents[] {
  const vda = aDisk(12, 100)
  const vdb = aDisk(4)
  const two = changed(vda, 1, 2, { zero: 5 })
  const three = changed(two, 2, 3)
  return [
    { vda: { bytes: vda }, vdb: { bytes: vdb } },
    { vda: { bytes: two }, vdb: { bytes: Buffer.concat([vdb, aDisk(1, 512)]) } },
    { vda: { bytes: three }, vdb: { bytes: changed(vdb, 1) } },
    { vda: { bytes: changed(three, 0, 5) }, vdb: { bytes: changed(vdb, 1, 3) } },
  ]
}

async function aClone(
  name: string,
  all: Contents[],
): Promise<{ layout: Layout; clone: CloneConfig; all: Contents[] }> {
  const config = standbySchema.parse({
    store: medium,
    sources: { alpha: { transport: 'unix' } },
    domains: { [name]: { source: 'alpha', keep: { last: 2 } } },
  })
  const clone = cloneConfig(config, name)
  const layout = layoutOf(clone.dir)
  await makeFolders(layout)
  await publishAll(layout, all, pool)
  return { layout, clone, all }
}

/** @returns what is not as it was published */
async function wrong(layout: Layout, all: readonly Contents[]): Promise<string[]> {
  const found: string[] = []
  for (const { generation } of await soundGenerations(layout.dir))
    for (const { target } of generation.disks) {
      const bytes = await bytesOf(layout, generation.seq, target)
      const want = all[generation.seq - 1]?.[target]?.bytes
      if (!want?.equals(bytes)) found.push(`${generation.seq} ${target}`)
    }
  return found
}

const back = (clone: CloneConfig, which: string, dryRun = false) =>
  rollbackCommand(clone, which, dryRun, never, NOBODY)

t.test(
  'any generation becomes current, all others stay readable, and the newest again',
  async t => {
    const { layout, clone, all } = await aClone('all', fourOf())
    const would = await back(clone, '1', true)
    t.equal(await currentOf(layout), 4, 'a dry run changes nothing')
    t.match(would, { dryRun: true, before: { seq: 4 }, current: { id: idOf(1) }, selected: 1 })
    t.strictSame(
      would.steps.map(({ to }) => to),
      [idOf(3), idOf(2), idOf(1)],
    )
    for (const [which, seq] of [
      [idOf(1), 1],
      ['3', 3],
      ['2', 2],
      ['newest', 4],
      ['newest', 4],
    ] as const) {
      const done = await back(clone, which)
      t.match(done, { current: { id: idOf(seq) }, selected: which === 'newest' ? which : seq })
      t.equal(await currentOf(layout), seq)
      t.equal((await readState(layout)).selected, which === 'newest' ? which : seq)
      for (const target of ['vda', 'vdb']) t.equal(await depthOf(layout, seq, target), 1)
      t.strictSame(await wrong(layout, all), [])
    }
    t.notOk((await readdir(layout.dir)).includes('undo.json'))
  },
)

t.test('where generations are whole, only the selection changes', async t => {
  const { layout, clone } = await aClone('whole', [])
  const all = fourOf().slice(0, 2)
  for (const [at, contents] of all.entries()) {
    await stage(layout, at + 1, contents)
    await publishStaged(layout, at + 1, pool)
  }
  t.strictSame((await back(clone, '1')).steps, [])
  t.equal(await currentOf(layout), 1)
  await back(clone, 'newest')
  t.equal(await currentOf(layout), 2)
  t.strictSame(await wrong(layout, all), [])
})

t.test('a pull in place is refused while an older generation is selected', async t => {
  await t.rejects(checkPatchable('mydomain', { selected: 3 }, []), {
    code: 'UNSAFE',
    remedy: /clone rollback mydomain newest/,
  })
  await checkPatchable('mydomain', { selected: 'newest' }, [])
})

t.test('a rollback is refused when it would hurt, and then changes nothing', async t => {
  const { layout, clone, all } = await aClone('refused', fourOf().slice(0, 3))
  await t.rejects(back(clone, '9'), { code: 'USAGE', message: /no generation 9/ })

  const claims = path.join(layout.generations, idOf(3), 'claims')
  await mkdir(claims)
  await writeFile(path.join(claims, 'test-boot'), '')
  await t.rejects(back(clone, '1'), { code: 'UNSAFE', message: /claimed: test-boot/ })
  await rm(path.join(claims, 'test-boot'))

  const image = openSync(path.join(layout.generations, idOf(3), 'vdb.raw'), 'r+')
  const holder = spawn('sleep', ['100'], { stdio: [image, 'ignore', 'ignore'] })
  await t.rejects(back(clone, '1'), { code: 'UNSAFE', message: /sleep.*vdb\.raw/ })
  holder.kill('SIGKILL')
  closeSync(image)
  await new Promise(resolve => holder.once('exit', resolve))

  const state = await readState(layout)
  await writeState(layout, { ...state, role: 'failed-over' })
  await t.rejects(back(clone, '1'), { code: 'UNSAFE', message: /failed-over/ })
  await writeState(layout, state)

  await markDamaged(path.join(layout.generations, idOf(1)), ['vda: a test'])
  await t.rejects(back(clone, '1'), { code: 'INTEGRITY', message: /damaged: vda: a test/ })
  t.equal(await currentOf(layout), 3)
  t.strictSame(await wrong(layout, all), [])
})

t.test(
  'off a damaged newest generation: to one that is good, never to one that shares the damage',
  async t => {
    const all = fourOf().slice(1)
    const { layout, clone } = await aClone('damaged', all)
    const spoil = (chunk: number) => {
      const fd = openSync(path.join(layout.generations, idOf(3), 'vda.raw'), 'r+')
      writeSync(fd, 'bad', chunk * CHUNK_SIZE)
      closeSync(fd)
    }
    // Chunk 0 is another one in the generation before, chunk 9 is the same in all.
    spoil(0)
    await markDamaged(path.join(layout.generations, idOf(3)), ['vda: chunk 0'])
    await back(clone, 'newest')
    t.equal(await currentOf(layout), 2)
    t.equal((await readState(layout)).selected, 'newest')
    t.strictSame(await wrong(layout, all), ['3 vda'], 'and its bytes were kept as they were')

    const fd = openSync(path.join(layout.generations, idOf(2), 'vda.raw'), 'r+')
    writeSync(fd, 'bad', 9 * CHUNK_SIZE)
    closeSync(fd)
    await markDamaged(path.join(layout.generations, idOf(2)), ['vda: chunk 9'])
    await t.rejects(back(clone, '1'), {
      code: 'INTEGRITY',
      message: /damaged: vda: 1 bad chunks.* 9 /,
    })
    const one = (await soundGenerations(layout.dir)).find(({ id }) => id === idOf(1))
    t.match(one?.damaged, / 9 /, 'which is then known of it')
    t.equal(await currentOf(layout), undefined)
  },
)

t.test(
  'prune rewrites the records that need a generation, and spares what holds an image',
  async t => {
    const { layout, clone, all } = await aClone('prune', fourOf())
    await mkdir(path.join(layout.generations, idOf(1), 'claims'))
    await writeFile(path.join(layout.generations, idOf(1), 'claims', 'keep-me'), '')
    const plan = await pruneCommand(clone, false)
    t.strictSame(
      plan.remove.map(({ seq }) => seq),
      [2],
    )
    t.strictSame(await wrong(layout, all), [])
    t.strictSame(
      (await readdir(path.join(layout.generations, idOf(1)))).filter(name => /from/.test(name)),
      [`vda.raw.from-${idOf(3)}`, `vdb.raw.from-${idOf(3)}`],
    )
    const { size } = await stat(path.join(layout.generations, idOf(1), `vda.raw.from-${idOf(3)}`))
    t.equal(size, all[0]?.['vda']?.bytes.length)

    // Rolled back, the oldest has all images.
    await back(clone, '1')
    await t.rejects(back(clone, '3'), { code: 'UNSAFE', message: /claimed: keep-me/ })
    t.strictSame(await wrong(layout, all), [])
    await rm(path.join(layout.generations, idOf(1), 'claims', 'keep-me'))
    await writeState(layout, { ...(await readState(layout)), selected: 'newest' })
    const spared = await pruneCommand(clone, false)
    t.strictSame(spared.remove, [])
    t.match(spared.spared, [{ seq: 1, why: /holds the image of vda that .*3/ }])
    t.strictSame(await wrong(layout, all), [])
  },
)
