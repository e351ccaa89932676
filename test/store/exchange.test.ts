// The exchange on real media: images become another generation in place, and what they held can still be read.

import t from 'tap'
import { readdir } from 'node:fs/promises'
import path from 'node:path'
import { openPool } from '../../client/copy/pool.ts'
import { CHUNK_SIZE } from '../../client/plan.ts'
import { layoutOf, makeFolders, type Layout } from '../../client/store/layout.ts'
import {
  aDisk,
  bytesOf,
  changed,
  currentOf,
  depthOf,
  idOf,
  publishStaged,
  stage,
  type Content,
} from '../client/generations.ts'
import { aMedium } from '../client/medium.ts'

const medium = await aMedium(t, 'ext4', 384)
const pool = openPool(1)
t.teardown(() => pool[Symbol.asyncDispose]())
let clones = 0

async function aClone(): Promise<Layout> {
  const layout = layoutOf(path.join(medium, `clone-${clones++}`))
  await makeFolders(layout)
  return layout
}

interface Shape {
  readonly title: string
  readonly one: Record<string, Content>
  readonly two: Record<string, Content>
  /** Disks whose image passes from the first to the second. */
  readonly shared: string[]
}
const first = aDisk(6, 777)
const SHAPES: Shape[] = [
  {
    title: 'nothing changed',
    one: { vda: { bytes: first } },
    two: { vda: { bytes: first } },
    shared: ['vda'],
  },
  {
    title: 'chunks changed and zeroed, the last one too',
    one: { vda: { bytes: changed(first, { zero: 4 }) } },
    two: { vda: { bytes: changed(first, 0, 2, 4, { zero: 5 }, { zero: 6 }) } },
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
    two: { vda: { bytes: changed(first, 2).subarray(0, 4 * CHUNK_SIZE + 512) } },
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
    const layout = await aClone()
    await stage(layout, 1, one)
    await publishStaged(layout, 1, pool)
    t.equal(await currentOf(layout), 1)
    await stage(layout, 2, two, [{ id: idOf(1), contents: one }])
    await publishStaged(layout, 2, pool)
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
