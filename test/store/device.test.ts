// Block devices as images: who may be taken, how one is known again, and exchanges and rollbacks on them.

import t, { type Test } from 'tap'
import { execFileSync } from 'node:child_process'
import { mkdir, readFile, readlink, symlink, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { NOBODY } from '../../client/attempt.ts'
import { openPool } from '../../client/copy/pool.ts'
import { CHUNK_SIZE } from '../../client/plan.ts'
import { takeDevice } from '../../client/store/device.ts'
import { soundGenerations } from '../../client/store/generation.ts'
import { layoutOf, makeFolders, type Layout } from '../../client/store/layout.ts'
import { planRollback, rollback } from '../../client/store/rollback.ts'
import { readState } from '../../client/store/state.ts'
import {
  aDisk,
  bytesOf,
  changed,
  currentOf,
  idOf,
  publishStaged,
  soundOf,
  stage,
  type Basis,
  type Contents,
} from '../client/generations.ts'
import { aDevice, aMedium } from '../client/medium.ts'

const MIB = 1024 * 1024
const medium = await aMedium(t, 'ext4', 128)
const pool = openPool(1)
t.teardown(() => pool[Symbol.asyncDispose]())
let clones = 0

/** In a store of its own: an inode, by which a loop device is known, is used again when its file is gone. */
async function aClone(store = path.join(medium, `store-${clones++}`)): Promise<Layout> {
  const layout = layoutOf(path.join(store, `clone-${clones++}`))
  await makeFolders(layout)
  return layout
}

async function take(layout: Layout, device: string, target = 'vda', size = MIB): Promise<void> {
  const sound = await soundGenerations(layout.dir)
  await using taken = await takeDevice(layout, sound, { target, size, device })
  t.equal(taken.path, device)
}

t.test('a blank device is taken, and known again by any name', async t => {
  const layout = await aClone()
  const device = await aDevice(t, 4 * MIB)
  await take(layout, device)
  const text = await readFile(path.join(layout.dir, 'devices.json'), 'utf8')
  t.match(JSON.parse(text), {
    devices: [{ target: 'vda', path: device, identity: /^loop \S+ \d+$/ }],
  })

  await writeFile(device, aDisk(1))
  await take(layout, device)
  const { bytes } = { bytes: aDisk(1) }
  await stage(layout, 1, { vda: { bytes, device } })
  await publishStaged(layout, 1, pool)

  const name = path.join(medium, 'another-name')
  await symlink(device, name)
  await take(layout, name)
  t.equal(await readlink(path.join(layout.generations, idOf(1), 'vda.raw')), name, 'links follow')
  t.ok((await bytesOf(layout, 1, 'vda')).equals(bytes))
})

/** Makes a device something that may not be taken. */
type Spoil = (device: string, t: Test) => Promise<unknown>
const SPOILT: [title: string, spoil: Spoil, message: RegExp][] = [
  ['a file system', async device => execFileSync('mkfs.ext4', ['-q', device]), /not blank: ext4/],
  ['something at its start', device => writeFile(device, 'x'), /first MiB holds data/],
  [
    'something at its end',
    async device =>
      execFileSync(
        'dd',
        [`of=${device}`, 'seek=4M', 'oflag=seek_bytes', 'conv=notrunc', 'status=none'].map(one =>
          one.replace('4M', String(4 * MIB - 1)),
        ),
        { input: 'x' },
      ),
    /last MiB holds data/,
  ],
]
for (const [title, spoil, message] of SPOILT)
  t.test(`a device that is not blank is refused: ${title}`, async t => {
    const layout = await aClone()
    const device = await aDevice(t, 4 * MIB)
    await spoil(device, t)
    await t.rejects(take(layout, device), { code: 'UNSAFE', message, remedy: /wipefs --all/ })
  })

t.test('a device in use is refused, and whoever has it is named', async t => {
  const layout = await aClone()
  const device = await aDevice(t, 8 * MIB)
  await take(layout, device)
  execFileSync('mkfs.ext4', ['-q', device])
  const where = path.join(medium, 'mounted')
  await mkdir(where)
  execFileSync('mount', [device, where])
  await t.rejects(take(layout, device), { code: 'UNSAFE', message: /mounted at .*mounted/ })
  execFileSync('umount', [where])

  const sound = await soundGenerations(layout.dir)
  await using taken = await takeDevice(layout, sound, { target: 'vda', size: MIB, device })
  t.ok(taken)
  t.throws(() => execFileSync('mount', [device, where], { stdio: 'pipe' }), /busy|already/)
})

t.test(
  'too small, no device, another disk, another clone, another device of the name: refused',
  async t => {
    const store = path.join(medium, 'store')
    const [layout, other] = [await aClone(store), await aClone(store)]
    const [device, second] = [await aDevice(t, 4 * MIB), await aDevice(t, 4 * MIB)]
    await t.rejects(take(layout, device, 'vda', 4 * MIB + 512), {
      code: 'UNSAFE',
      message: /4194304 bytes.*4194816 bytes/,
    })
    await t.rejects(take(layout, '/dev/null'), { code: 'USAGE', message: /not a block device/ })
    await t.rejects(take(layout, '/dev/nowhere'), { code: 'STANDBY_IO', message: '/dev/nowhere' })
    const name = path.join(medium, 'a-name')
    await symlink(device, name)
    await take(layout, name)
    await t.rejects(take(layout, device, 'vdb'), {
      code: 'UNSAFE',
      message: /disk vda of the clone/,
    })
    await t.rejects(take(other, device), { code: 'UNSAFE', message: path.basename(layout.dir) })
    execFileSync('ln', ['-sfn', second, name])
    await t.rejects(take(layout, name), { code: 'UNSAFE', message: /it was loop .*, and is loop / })
  },
)

const first = aDisk(5)
const SHAPES: [title: string, (device: string) => Contents[]][] = [
  [
    'changed and zeroed',
    device =>
      [first, changed(first, 1, { zero: 3 }), changed(first, 1, 3)].map(bytes => ({
        vda: { bytes, device },
      })),
  ],
  [
    'grown and shrunk',
    device =>
      [
        first,
        Buffer.concat([changed(first, 0), aDisk(1, 512)]),
        first.subarray(0, 3 * CHUNK_SIZE),
      ].map(bytes => ({ vda: { bytes, device } })),
  ],
  [
    'changed format, beside a disk that is a file',
    device => [
      { vda: { bytes: first, device }, vdb: { bytes: aDisk(1) } },
      { vda: { bytes: changed(first, 2), device, format: 'qcow2' }, vdb: { bytes: aDisk(2) } },
      { vda: { bytes: changed(first, 3), device }, vdb: { bytes: aDisk(2) } },
    ],
  ],
  [
    'removed and added again',
    device => [
      { vda: { bytes: aDisk(1) }, vdb: { bytes: first, device } },
      { vda: { bytes: aDisk(1) } },
      { vda: { bytes: aDisk(1) }, vdb: { bytes: changed(first, 2), device } },
    ],
  ],
]
for (const [title, make] of SHAPES)
  t.test(`generations on a block device, pulled and rolled back: ${title}`, async t => {
    const device = await aDevice(t, 8 * MIB)
    const all = make(device)
    const layout = await aClone()
    const wrong = async (): Promise<string[]> => {
      const found: string[] = []
      for (const { generation } of await soundGenerations(layout.dir))
        for (const { target } of generation.disks) {
          const want = all[generation.seq - 1]?.[target]?.bytes
          if (!want?.equals(await bytesOf(layout, generation.seq, target)))
            found.push(`${generation.seq} ${target}`)
        }
      return found
    }
    const target = Object.entries(all[0] ?? {}).find(([, { device }]) => device)?.[0] ?? ''
    await take(layout, device, target, first.length)
    for (const [at, contents] of all.entries()) {
      const sound = await soundGenerations(layout.dir)
      const basis = basisOf(all.slice(0, at))
      if (contents[target]) {
        const { bytes } = contents[target]
        await using taken = await takeDevice(layout, sound, { target, size: bytes.length, device })
        const holder = basis.find(({ contents }) => contents[target])
        t.equal(taken.holder?.id, holder?.id, 'the generation that is on it is known')
      }
      await stage(layout, at + 1, contents, basis)
      await publishStaged(layout, at + 1, pool)
      t.strictSame(await wrong(), [])
    }
    for (const seq of [1, 3]) {
      const sound = await soundGenerations(layout.dir)
      const plan = await planRollback(layout, soundOf(sound, seq), seq)
      const { signal } = new AbortController()
      await rollback(layout, await readState(layout), plan, { pool, signal, watcher: NOBODY })
      t.equal(await currentOf(layout), seq)
      t.strictSame(await wrong(), [])
    }
  })

const basisOf = (earlier: readonly Contents[]): Basis =>
  earlier.map((contents, at) => ({ id: idOf(at + 1), contents })).reverse()
