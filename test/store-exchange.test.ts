// The exchange on real media: images become another generation in place, and what they held can still be read.

import t, { type Test } from 'tap'
import { readdir } from 'node:fs/promises'
import path from 'node:path'
import { NOBODY } from '../client/attempt.ts'
import { openPool } from '../client/copy/pool.ts'
import { CHUNK_SIZE } from '../client/plan.ts'
import { publishInPlace } from '../client/store/exchange.ts'
import { layoutOf, makeFolders, type Layout } from '../client/store/layout.ts'
import { readState } from '../client/store/state.ts'
import {
  aDisk,
  bytesOf,
  changed,
  currentOf,
  depthOf,
  idOf,
  stage,
  type Content,
} from './client/generations.ts'
import { aMedium } from './client/medium.ts'

const never = new AbortController().signal

/** A clone on ext4, in which whole generations are published one after another. */
async function aClone(t: Test): Promise<Layout> {
  const layout = layoutOf(path.join(await aMedium(t, 'ext4', 96), 'mydomain'))
  await makeFolders(layout)
  return layout
}

async function publish(layout: Layout, seq: number, signal = never): Promise<string> {
  await using pool = openPool(16)
  const after = { ...(await readState(layout)), lastSeq: seq }
  return await publishInPlace(layout, idOf(seq), after, { pool, signal, watcher: NOBODY })
}

interface Shape {
  readonly title: string
  readonly one: Record<string, Content>
  readonly two: Record<string, Content>
  /** Disks whose image passes from the first to the second. */
  readonly shared: string[]
}
const first = aDisk(20, 777)
const SHAPES: Shape[] = [
  {
    title: 'nothing changed',
    one: { vda: { bytes: first } },
    two: { vda: { bytes: first } },
    shared: ['vda'],
  },
  {
    title: 'chunks changed and zeroed, the last one too',
    one: { vda: { bytes: changed(first, { zero: 7 }) } },
    two: { vda: { bytes: changed(first, 0, 3, 4, { zero: 9 }, { zero: 20 }) } },
    shared: ['vda'],
  },
  {
    title: 'a disk grew',
    one: { vda: { bytes: first } },
    two: { vda: { bytes: Buffer.concat([changed(first, 2), aDisk(3, 512)]) } },
    shared: ['vda'],
  },
  {
    title: 'a disk grew by zeros',
    one: { vda: { bytes: first } },
    two: { vda: { bytes: Buffer.concat([first, Buffer.alloc(3 * CHUNK_SIZE)]) } },
    shared: ['vda'],
  },
  {
    title: 'a disk shrank',
    one: { vda: { bytes: first } },
    two: { vda: { bytes: changed(first, 2).subarray(0, 6 * CHUNK_SIZE + 512) } },
    shared: ['vda'],
  },
  {
    title: 'a disk was added',
    one: { vda: { bytes: first } },
    two: { vda: { bytes: changed(first, 2) }, vdb: { bytes: aDisk(3) } },
    shared: ['vda'],
  },
  {
    title: 'a disk was removed',
    one: { vda: { bytes: first }, vdb: { bytes: aDisk(3) } },
    two: { vda: { bytes: changed(first, 2) } },
    shared: ['vda'],
  },
  {
    title: 'a disk changed its format',
    one: { vda: { bytes: first }, vdb: { bytes: aDisk(3) } },
    two: { vda: { bytes: changed(first, 2) }, vdb: { format: 'qcow2', bytes: aDisk(4) } },
    shared: ['vda'],
  },
]

for (const { title, one, two, shared } of SHAPES)
  t.test(`after an exchange both generations can be read: ${title}`, async t => {
    const layout = await aClone(t)
    await stage(layout, 1, one)
    await publish(layout, 1)
    t.equal(await currentOf(layout), 1)
    await stage(layout, 2, two, [{ id: idOf(1), contents: one }])
    await publish(layout, 2)
    t.equal(await currentOf(layout), 2)
    for (const [seq, contents] of [[1, one] as const, [2, two] as const])
      for (const [target, { bytes }] of Object.entries(contents))
        t.ok((await bytesOf(layout, seq, target)).equals(bytes), `${seq} ${target}`)
    for (const target of Object.keys(two)) t.equal(await depthOf(layout, 2, target), 1)
    for (const target of Object.keys(one))
      t.equal(await depthOf(layout, 1, target), shared.includes(target) ? 2 : 1)
    t.strictSame(await readdir(layout.staging), [])
    t.notOk((await readdir(layout.dir)).includes('undo.json'))
  })
