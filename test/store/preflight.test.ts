// May this clone be written, and will it fit? Users, locks, binding, space, inodes, permissions, ownership.

import t, { type Test } from 'tap'
import { spawn, spawnSync, execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, openSync, readdirSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { CHUNK_SIZE } from '../../client/plan.ts'
import type { Generation, Sound } from '../../client/store/generation.ts'
import { boundTo, checkUnused, lockClone } from '../../client/store/guard.ts'
import { layoutOf, makeFolders, type Layout } from '../../client/store/layout.ts'
import { LINE } from '../../client/store/manifest.ts'
import { ownGeneration, PRIVATE, resolveOwnership } from '../../client/store/ownership.ts'
import { checkFree, checkRoom, checkWritable, worstOf } from '../../client/store/room.ts'
import { imagesIn, usersOf } from '../../client/store/users.ts'
import { openersOfEach } from '../../shared/host/openers.ts'
import { aMedium } from '../client/medium.ts'

const MIB = 1024 * 1024
const HOST = '6b0f2d7e-3b57-4c83-9e0c-2f1f0f4b6a01'
const UUID = '0d3b9a52-7a0e-4a53-8f4e-6f0d6b2b7c11'

async function aFolder(t: Test): Promise<string> {
  const dir = await mkdtemp(path.join(tmpdir(), 'nbd-clone-test-'))
  t.teardown(() => rm(dir, { recursive: true, force: true }))
  return dir
}

async function aClone(t: Test, dir?: string): Promise<Layout> {
  const layout = layoutOf(path.join(dir ?? (await aFolder(t)), 'store', 'mydomain'))
  await makeFolders(layout)
  return layout
}

/** A generation as far as its images matter. */
async function aGeneration(layout: Layout, id: string): Promise<Sound & { image: string }> {
  const dir = path.join(layout.generations, id)
  await mkdir(dir)
  const image = path.join(dir, 'vda.raw')
  await writeFile(image, Buffer.alloc(CHUNK_SIZE))
  const generation = { disks: [{ target: 'vda', format: 'raw' }] } as unknown as Generation
  return { id, dir, generation, image }
}

/** A process that has a file open. */
function aHolder(t: Test, file: string, flags: string): { pid: number; end: () => Promise<void> } {
  const fd = openSync(file, flags)
  const child = spawn('sleep', ['100'], { stdio: [fd, 'ignore', 'ignore'] })
  closeSync(fd)
  t.teardown(() => child.kill('SIGKILL'))
  const end = async (): Promise<void> => {
    child.kill('SIGKILL')
    await once(child, 'exit')
  }
  return { pid: child.pid ?? 0, end }
}

t.test(
  'a process that can write to any image refuses; one that reads refuses what it reads',
  async t => {
    const layout = await aClone(t)
    const older = await aGeneration(layout, '20261120T030001Z-0001')
    const newest = await aGeneration(layout, '20261120T030002Z-0002')
    const sound = [older, newest]
    await checkUnused(layout, sound, [newest.image])

    const writer = aHolder(t, older.image, 'r+')
    await t.rejects(checkUnused(layout, sound), {
      code: 'UNSAFE',
      message: `process ${writer.pid} (sleep) has ${older.image} open for writing`,
    })
    await writer.end()

    const reader = aHolder(t, older.image, 'r')
    await checkUnused(layout, sound)
    await checkUnused(layout, sound, [newest.image])
    await t.rejects(checkUnused(layout, sound, [older.image]), {
      code: 'UNSAFE',
      message: `process ${reader.pid} (sleep) has ${older.image} open for reading`,
    })
    await reader.end()
    await checkUnused(layout, sound, [older.image])
  },
)

t.test('a process with two descriptors of an image writes if one of them does', async t => {
  const dir = await aFolder(t)
  const [one, two] = [path.join(dir, 'one'), path.join(dir, 'two')]
  for (const file of [one, two]) writeFileSync(file, '')
  const fds = [openSync(one, 'r'), openSync(one, 'r+'), openSync(two, 'r')] as const
  const child = spawn('sleep', ['100'], { stdio: [...fds] })
  fds.forEach(closeSync)
  t.teardown(() => child.kill('SIGKILL'))
  symlinkSync(one, path.join(dir, 'link'))
  const openers = await openersOfEach([one, two, path.join(dir, 'link'), path.join(dir, 'nowhere')])
  const writes = [...openers].map(([file, found]) => [path.basename(file), found[0]?.writes])
  t.strictSame(writes.sort(), [
    ['link', true],
    ['one', true],
    ['two', false],
  ])
})

t.test('a loop device writes unless it is read-only', async t => {
  const layout = await aClone(t)
  const only = await aGeneration(layout, '20261120T030001Z-0001')
  for (const how of ['--read-only', undefined]) {
    const args = ['--find', '--show', ...(how === undefined ? [] : [how]), only.image]
    const device = execFileSync('losetup', args, { encoding: 'utf8' }).trim()
    const detach = () => spawnSync('losetup', ['--detach', device])
    t.teardown(detach)
    t.strictSame(await usersOf([only.image]), [
      {
        text: `${device} ${how === undefined ? 'can write to' : 'reads'} ${only.image}`,
        writes: how === undefined,
      },
    ])
    const refused = checkUnused(layout, [only])
    if (how === undefined) await t.rejects(refused, { code: 'UNSAFE', message: device })
    else await refused
    await t.rejects(checkUnused(layout, [only], [only.image]), { code: 'UNSAFE', message: device })
    detach()
  }
})

t.test(
  'a running domain writes to its disks, and reads read-only ones and what is under an overlay',
  t => {
    const xml = `<domain><devices>
    <disk type='file' device='disk'><source file='/a/top.qcow2'/>
      <backingStore type='file'><source file='/a/base.raw'/></backingStore>
      <mirror type='file'><source file='/a/mirror.raw'/></mirror></disk>
    <disk type='block' device='disk'><source dev='/dev/vg/lv'/></disk>
    <disk type='file' device='disk'><source file='/a/only-read.raw'/><readonly/></disk>
    <disk type='network' device='disk'><source protocol='nbd' name='x'/></disk>
    <interface type='direct'><source dev='eth0'/></interface>
  </devices></domain>`
    t.strictSame(imagesIn(xml), [
      { file: '/a/top.qcow2', writes: true },
      { file: '/a/base.raw', writes: false },
      { file: '/a/mirror.raw', writes: true },
      { file: '/dev/vg/lv', writes: true },
      { file: '/a/only-read.raw', writes: false },
    ])
    t.strictSame(imagesIn('<domain'), [])
    t.end()
  },
)

t.test('the lock names its holder and since when, and never one that is gone', async t => {
  const layout = await aClone(t)
  const unlock = lockClone(layout, 'pull')
  t.throws(() => lockClone(layout, 'verify'), {
    code: 'LOCKED',
    message: new RegExp(`locked by process ${process.pid} \\(clone pull\\) since 20\\d\\d-.*Z$`),
  })
  unlock()
  lockClone(layout, 'verify')()

  // Whoever holds the lock now has not written its name yet: what stands there is of one that is gone.
  const gone = spawnSync('true').pid
  for (const pid of [gone, 1]) {
    writeFileSync(
      layout.lock,
      `process ${pid} (clone pull) since 2026-11-20T03:00:00.000Z\n${pid}\n`,
    )
    const holder = spawn('flock', [layout.lock, 'sh', '-c', 'echo locked; exec sleep 100'])
    t.teardown(() => holder.kill('SIGKILL'))
    await once(holder.stdout, 'data')
    t.throws(() => lockClone(layout, 'pull'), { code: 'LOCKED', message: /by another process$/ })
    const killed = spawnSync('pkill', ['-KILL', '-P', String(holder.pid)])
    t.equal(killed.status, 0)
    await once(holder, 'exit')
    lockClone(layout, 'pull')()
  }
})

t.test('a clone is bound to the source of its newest generation, however far the state got', t => {
  const [mine, other] = [
    { hostId: HOST, domainUuid: UUID },
    { hostId: UUID, domainUuid: HOST },
  ]
  const of = (seq: number, source: typeof mine) => ({ seq, source: { ...source, epoch: 0 } })
  const TABLE: [what: string, lastSeq: number, newest: ReturnType<typeof of> | undefined][] = [
    ['no generation yet', 0, undefined],
    ['a crash before the rename', 2, of(1, other)],
    ['the newest was removed by hand', 5, of(4, other)],
  ]
  for (const [what, lastSeq, newest] of TABLE)
    t.strictSame(boundTo({ bound: mine, lastSeq }, newest), mine, what)
  t.strictSame(
    boundTo({ bound: mine, lastSeq: 2 }, of(2, other)),
    other,
    'a crash after the rename',
  )
  t.strictSame(boundTo({ bound: null, lastSeq: 1 }, of(1, mine)), mine, 'the first one')
  t.end()
})

t.test('the worst case of a disk, by how its copy is made', t => {
  const size = 100 * MIB
  const basis = { size, occupied: 30 * MIB }
  const vda = { target: 'vda', size, allocated: 40 * MIB, basis }
  const TABLE: [what: string, disk: Parameters<typeof worstOf>[0], mib: number][] = [
    ['first: what is allocated', { ...vda, method: 'whole', basis: undefined }, 40],
    ['first: a source that does not tell', { target: 'vda', size, method: 'whole' }, 100],
    ['more allocated than there is', { ...vda, allocated: 900 * MIB, method: 'reflink' }, 100],
    ['reflink: all that may change', { ...vda, method: 'reflink' }, 40],
    ['copy: the older one too', { ...vda, method: 'copy' }, 70],
    ['copy: never more than the disk', { ...vda, method: 'copy', allocated: 90 * MIB }, 100],
    [
      'copy of a disk that shrank: the older one comes first',
      { ...vda, size: 10 * MIB, method: 'copy' },
      30,
    ],
    ['in place: staged, kept, and grown', { ...vda, method: 'in-place' }, 40 + 30 + 40],
    ['in place: grows to its size', { ...vda, method: 'in-place', allocated: size }, 100 + 30 + 70],
    [
      'in place on a device: nothing grows',
      { ...vda, method: 'in-place', device: true, basis: { size, occupied: size } },
      40 + 100,
    ],
    ['a blank device', { ...vda, method: 'whole', device: true, basis: undefined }, 0],
  ]
  for (const [what, disk, mib] of TABLE)
    t.equal(worstOf(disk), mib * MIB + Math.ceil(disk.size / MIB) * LINE, what)
  t.end()
})

t.test('what does not fit is refused with the numbers of each disk', async t => {
  const layout = await aClone(t, await aMedium(t, 'ext4', 128))
  const vda = { target: 'vda', method: 'reflink', size: 900 * MIB, allocated: 20 * MIB } as const
  await checkRoom(layout, [vda])
  const vdb = { target: 'vdb', method: 'in-place', size: 100 * MIB } as const
  await t.rejects(checkRoom(layout, [vda, vdb]), {
    code: 'SPACE',
    exit: 22,
    message:
      /^\/.*\/staging: [\d.]+ MiB free, but a pull that changes everything needs 284\.1 MiB: vda \(reflink\) 20\.1 MiB, vdb \(in-place\) 200\.0 MiB, reserve 64 MiB$/,
  })
})

t.test('what an interrupted pull left is given up only when its space is needed', async t => {
  const layout = await aClone(t, await aMedium(t, 'ext4', 192))
  const left = path.join(layout.staging, 'vda.raw')
  await writeFile(left, Buffer.alloc(60 * MIB, 1))
  let reclaimed = 0
  const reclaim = async (): Promise<void> => {
    reclaimed++
    await rm(left)
  }
  const disk = (mib: number) => ({ target: 'vda', method: 'whole', size: mib * MIB }) as const
  await checkRoom(layout, [disk(10)], reclaim)
  t.equal(reclaimed, 0, 'it fits beside')
  await t.rejects(checkRoom(layout, [disk(500)], reclaim), { code: 'SPACE' })
  t.equal(reclaimed, 0, 'it would not help')
  await checkRoom(layout, [disk(80)], reclaim)
  t.equal(reclaimed, 1)
})

t.test('a file system without inodes is refused before anything is copied', async t => {
  const dir = await aFolder(t)
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=300m,nr_inodes=20', 'tmpfs', dir])
  t.teardown(() => spawnSync('umount', ['--lazy', dir]))
  const layout = await aClone(t, dir)
  await t.rejects(checkRoom(layout, [{ target: 'vda', method: 'whole', size: MIB }]), {
    code: 'SPACE',
    message: /room for \d+ more files, but 19 are needed/,
  })
  await checkFree(dir, MIB, 3, 'nothing')
})

t.test('a folder that cannot be written is named before anything is copied', async t => {
  const mounted = await aMedium(t, 'ext4', 64)
  const layout = await aClone(t, mounted)
  await checkWritable(layout)
  t.strictSame(readdirSync(layout.staging), [], 'nothing is left of the trial')
  execFileSync('chattr', ['+i', layout.generations])
  t.teardown(() => spawnSync('chattr', ['-i', layout.generations]))
  await t.rejects(checkWritable(layout), {
    code: 'STANDBY_IO',
    exit: 23,
    message: `${layout.generations}: operation not permitted (EPERM)`,
  })
  execFileSync('chattr', ['-i', layout.generations])
  execFileSync('mount', ['-o', 'remount,ro', mounted])
  await t.rejects(checkWritable(layout), {
    message: `${layout.dir}: read-only file system (EROFS)`,
  })
})

t.test('ownership is looked up, and a wrong name is an error of the configuration', async t => {
  const modes = { mode: '0640', dirMode: '0750' }
  const found = await resolveOwnership({ owner: 'daemon', group: 'disk', ...modes }, 'mydomain')
  const id = (...args: string[]) =>
    Number(execFileSync('getent', args, { encoding: 'utf8' }).split(':')[2])
  t.strictSame(found, {
    uid: id('passwd', 'daemon'),
    gid: id('group', 'disk'),
    mode: 0o640,
    dirMode: 0o750,
  })
  t.match(await resolveOwnership({ owner: '4242', ...modes }, 'mydomain'), {
    uid: 4242,
    gid: undefined,
  })
  await t.rejects(resolveOwnership({ group: 'nobodys', ...modes }, 'mydomain'), {
    code: 'USAGE',
    exit: 2,
    message: 'ownership of mydomain: group nobodys: this host has none of that name',
  })
})

t.test(
  'a generation and the folders to it are owned as configured, what is staged is not',
  async t => {
    const layout = await aClone(t)
    const { dir, image } = await aGeneration(layout, '20261120T030001Z-0001')
    symlinkSync('/dev/null', path.join(dir, 'vdb.raw'))
    const before = statSync('/dev/null')
    const ownership = { uid: 1, gid: 6, mode: 0o640, dirMode: 0o750 }
    await checkWritable(layout, ownership)
    await ownGeneration(dir, ownership)
    const seen = (file: string) => {
      const { uid, gid, mode } = statSync(file)
      return [uid, gid, (mode & 0o7777).toString(8)]
    }
    for (const folder of [layout.dir, layout.generations, dir])
      t.strictSame(seen(folder), [1, 6, '750'], folder)
    t.strictSame(seen(image), [1, 6, '640'])
    t.strictSame(seen(layout.staging), [0, 0, '700'])
    t.strictSame(statSync('/dev/null').mode, before.mode, 'a device keeps what it has')
    t.equal(statSync('/dev/null').uid, before.uid)
    await ownGeneration(dir, PRIVATE)
    t.strictSame(seen(image), [1, 6, '600'])
  },
)

t.test('an owner that cannot be given is refused before anything is copied', async t => {
  const layout = await aClone(t)
  execFileSync('chown', ['-R', '1:1', path.dirname(layout.dir)])
  execFileSync('chmod', ['0711', path.resolve(layout.dir, '../..')])
  process.seteuid?.(1)
  t.teardown(() => process.seteuid?.(0))
  await t.rejects(checkWritable(layout, { ...PRIVATE, uid: 2 }), {
    code: 'STANDBY_IO',
    exit: 23,
    message: `${layout.dir}: files in it cannot be given to user 2 (EPERM)`,
  })
  t.strictSame(readdirSync(layout.dir).sort(), ['generations', 'staging'])
  await checkWritable(layout)
  process.seteuid?.(0)
})

t.test('the one image in use is found among two thousand', async t => {
  const dir = await aFolder(t)
  const files = Array.from({ length: 2000 }, (_, at) => path.join(dir, `image-${at}`))
  for (const file of files) writeFileSync(file, '')
  const used = files[1234] ?? ''
  const { pid } = aHolder(t, used, 'r+')
  t.strictSame(await usersOf(files), [
    { text: `process ${pid} (sleep) has ${used} open for writing`, writes: true },
  ])
})
