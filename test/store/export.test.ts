// A generation leaves the store as a folder that coreutils and qemu-img understand, and seeds another store from it.

import t, { type Test } from 'tap'
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import {
  closeSync,
  existsSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  statSync,
  writeSync,
} from 'node:fs'
import {
  mkdir,
  mkdtemp,
  readFile,
  rename,
  rm,
  symlink,
  truncate,
  writeFile,
} from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { NOBODY, type Watcher } from '../../client/attempt.ts'
import { exportCommand } from '../../client/commands/export.ts'
import { importCommand } from '../../client/commands/import.ts'
import { verifyCommand } from '../../client/commands/verify.ts'
import { cloneConfig, loadConfig, type CloneConfig } from '../../client/config/effective.ts'
import { checkCommands } from '../../client/export-readme.ts'
import { openPool } from '../../client/copy/pool.ts'
import { CHUNK_SIZE } from '../../client/plan.ts'
import {
  generationSchema,
  soundGenerations,
  type Generation,
} from '../../client/store/generation.ts'
import { lockClone } from '../../client/store/guard.ts'
import { layoutOf, makeFolders } from '../../client/store/layout.ts'
import { publish, seal } from '../../client/store/publish.ts'
import { readState, writeState } from '../../client/store/state.ts'
import { Failure } from '../../shared/failures.ts'
import { publishAll } from '../client/generations.ts'
import { aMedium, type FileSystem } from '../client/medium.ts'
import { ROOT } from '../lab/names.ts'

const MIB = 1024 * 1024
const never = new AbortController().signal
const CLI = path.join(ROOT, 'dist', 'client', 'cli.js')
const HOST = '6b0f2d7e-3b57-4c83-9e0c-2f1f0f4b6a01'
const UUID = '0d3b9a52-7a0e-4a53-8f4e-6f0d6b2b7c11'
const idOf = (seq: number): string => `20261120T03000${seq}Z-00a${seq}`
const ALL = { generation: undefined, format: undefined }
const VDA = Buffer.concat([randomBytes(3 * MIB), Buffer.alloc(5 * MIB), randomBytes(MIB + 512 * 7)])
const VDB = Buffer.concat([Buffer.alloc(4 * MIB - 1), Buffer.from([1])])

const sha256 = (bytes: Buffer | string): string => createHash('sha256').update(bytes).digest('hex')

async function aFolder(t: Test): Promise<string> {
  const dir = await mkdtemp(path.join(tmpdir(), 'nbd-clone-test-'))
  t.teardown(() => rm(dir, { recursive: true, force: true }))
  return dir
}

/** A store with the clones `mydomain` and `seeded`, both of the source's domain `mydomain`. */
async function aStore(t: Test, store: string) {
  const file = path.join(await aFolder(t), 'standby.yaml')
  await writeFile(
    file,
    `store: ${store}\nsources: { alpha: { transport: unix } }\n` +
      `domains: { mydomain: { source: alpha }, seeded: { source: alpha, domain: mydomain } }\n`,
  )
  const config = loadConfig(file)
  return { file, clone: cloneConfig(config, 'mydomain'), seeded: cloneConfig(config, 'seeded') }
}

const manifestOf = (image: Buffer): string =>
  Array.from(
    { length: Math.ceil(image.length / CHUNK_SIZE) },
    (_, at) => `${sha256(image.subarray(at * CHUNK_SIZE, (at + 1) * CHUNK_SIZE))}\n`,
  ).join('')

/** Publishes a generation made by hand. @returns its folder */
async function aGeneration(
  clone: CloneConfig,
  seq: number,
  images: Record<string, Buffer>,
): Promise<string> {
  const layout = layoutOf(clone.dir)
  await makeFolders(layout)
  const dir = path.join(layout.staging, idOf(seq))
  await mkdir(dir)
  const disks: Generation['disks'] = []
  for (const [name, image] of Object.entries(images)) {
    const [target = '', format = ''] = name.split('.')
    const file = path.join(dir, name)
    await writeFile(file, image)
    execFileSync('fallocate', ['--dig-holes', file])
    await writeFile(path.join(dir, `${target}.manifest`), manifestOf(image))
    const digest = sha256(manifestOf(image))
    disks.push({ target, format: format as 'raw', size: image.length, digest, layers: [] })
  }
  await writeFile(
    path.join(dir, 'domain.xml'),
    `<domain><name>mydomain</name><uuid>${UUID}</uuid></domain>\n`,
  )
  await writeFile(path.join(dir, 'nvram.fd'), 'variables')
  await seal(layout, {
    ...{ schema: 1, seq, domain: 'mydomain', chunkSize: CHUNK_SIZE, disks },
    source: { hostId: HOST, domainUuid: UUID, epoch: 0 },
    recoveryPoint: {
      id: idOf(seq),
      instant: '2026-11-20T03:00:00.000Z',
      consistency: 'quiesced',
      clockSkewMs: 0,
    },
    omitted: [{ target: 'sda', reason: 'cdrom' }],
    definition: { inactive: 'domain.xml', live: null },
    nvram: 'nvram.fd',
    networks: [{ name: 'default', xml: '<network><name>default</name></network>' }],
    pools: [],
    host: { libvirt: '9', qemu: '7', arch: 'x86_64', machine: 'q35', cpu: 'x' },
    verified: { level: 'changed', at: '2026-11-20T03:01:00.000Z' },
  })
  return publish(layout, idOf(seq))
}

const generationIn = (folder: string): Generation =>
  generationSchema.parse(JSON.parse(readFileSync(path.join(folder, 'generation.json'), 'utf8')))

/** The commands of README.txt, as a reader types them. */
function checkByReadme(t: Test, folder: string): void {
  t.equal(statSync(folder).mode & 0o777, 0o700)
  for (const name of readdirSync(folder))
    t.equal(statSync(path.join(folder, name)).mode & 0o777, 0o600, name)
  const readme = readFileSync(path.join(folder, 'README.txt'), 'utf8')
  const typed = readme.split('CHECK IT')[1]?.split('Copy it with')[0] ?? ''
  const commands = typed.split('\n').filter(line => line.startsWith('    '))
  t.equal(commands.length, checkCommands(generationIn(folder)).length)
  for (const command of commands) {
    const ran = spawnSync('sh', ['-ec', command], { cwd: folder, encoding: 'utf8' })
    t.equal(ran.status, 0, `${command}: ${ran.stdout}${ran.stderr}`)
  }
}

function usedOn(mounted: string): number {
  execFileSync('sync', ['-f', mounted])
  return Number(execFileSync('df', ['--output=used', '-B1', mounted]).toString().split('\n')[1])
}

const blocks = (file: string): number => statSync(file).blocks * 512

for (const [from, to] of [
  ['xfs', 'xfs'],
  ['xfs', 'ext4'],
] as [FileSystem, FileSystem][])
  t.test(`a folder exported on ${from} seeds a clone on ${to}, byte for byte`, async t => {
    const there = await aMedium(t, from)
    const here = from === to ? there : await aMedium(t, to)
    const { clone } = await aStore(t, path.join(there, 'store'))
    const { seeded } = await aStore(t, path.join(here, 'store'))
    const dir = await aGeneration(clone, 1, { 'vda.raw': VDA, 'vdb.raw': VDB })
    const folder = path.join(there, 'taken')
    const before = usedOn(there)

    const phases: string[] = []
    const watcher: Watcher = { ...NOBODY, phase: (name, bytes) => phases.push(`${name} ${bytes}`) }
    const exported = await exportCommand(clone, { ...ALL, to: folder }, never, watcher)
    t.match(exported, { clone: 'mydomain', id: idOf(1), seq: 1, folder })
    t.strictSame(
      phases,
      ['copy', 'verify'].map(name => `${name} ${VDA.length + VDB.length}`),
    )
    t.strictSame(readdirSync(folder).sort(), [
      ...['README.txt', 'domain.xml', 'generation.json', 'nvram.fd'],
      ...['vda.manifest', 'vda.raw', 'vdb.manifest', 'vdb.raw'],
    ])
    checkByReadme(t, folder)
    t.ok(readFileSync(path.join(folder, 'vda.raw')).equals(VDA))
    t.ok(blocks(path.join(folder, 'vda.raw')) <= 4 * MIB + 64 * 1024, 'zeros are holes')
    t.strictSame(readdirSync(path.join(dir, 'claims')), [], 'the claim is released')

    const imported = await importCommand(seeded, { folder, adopt: false }, never, NOBODY)
    t.match(imported, { clone: 'seeded', id: idOf(1), seq: 1 })
    const layout = layoutOf(seeded.dir)
    t.equal(readlinkSync(layout.current), `generations/${idOf(1)}`)
    t.ok(readFileSync(path.join(layout.current, 'vda.raw')).equals(VDA))
    t.ok(readFileSync(path.join(layout.current, 'vdb.raw')).equals(VDB))
    t.ok(blocks(path.join(layout.current, 'vda.raw')) <= 4 * MIB + 64 * 1024, 'still holes')
    t.equal(readFileSync(path.join(layout.current, 'nvram.fd'), 'utf8'), 'variables')
    t.match(generationIn(layout.current), {
      omitted: [{ target: 'sda' }],
      verified: { level: 'all' },
    })
    t.match(await readState(layout), {
      bound: { hostId: HOST, domainUuid: UUID },
      lastSeq: 1,
      lastAttempt: { outcome: 'imported' },
    })
    t.match(JSON.parse(readFileSync(layout.history, 'utf8')), {
      ...{ outcome: 'imported', seq: 1 },
      seconds: { copy: Number, verify: Number },
    })
    t.strictSame(readdirSync(layout.staging), [])
    if (from === 'xfs' && to === 'xfs')
      t.ok(usedOn(there) - before < 3 * MIB, `blocks are shared: ${usedOn(there) - before} more`)
    await t.rejects(importCommand(seeded, { folder, adopt: true }, never, NOBODY), {
      code: 'UNSAFE',
      exit: 31,
      message: /has a generation already/,
    })
    t.match(await readState(layout), { failures: 0 }, 'a refusal says nothing of the clone')
  })

t.test('an older generation kept in place is exported whole', async t => {
  const { clone } = await aStore(t, path.join(await aMedium(t, 'ext4'), 'store'))
  const newer = Buffer.from(VDA)
  newer.fill(7, MIB, MIB + 100)
  newer.fill(0, 8 * MIB, 8 * MIB + 512)
  const layout = layoutOf(clone.dir)
  await makeFolders(layout)
  const pool = openPool(1)
  t.teardown(() => pool[Symbol.asyncDispose]())
  // The newer one is longer, so the last chunk of the older one differs, too.
  const longer = Buffer.concat([newer, randomBytes(MIB)])
  await publishAll(layout, [{ vda: { bytes: VDA } }, { vda: { bytes: longer } }], pool)
  const ids = (await soundGenerations(clone.dir)).map(({ id }) => id)
  const [older = ''] = ids
  t.notOk(existsSync(path.join(layout.generations, older, 'vda.raw')), 'it is a record')
  const folder = path.join(await aFolder(t), 'taken')
  const claims: string[] = []
  const watcher: Watcher = {
    ...NOBODY,
    phase: () => {
      for (const id of ids) claims.push(...readdirSync(path.join(layout.generations, id, 'claims')))
      // A pull or a prune may work meanwhile.
      lockClone(layout, 'test')()
    },
  }
  await exportCommand(clone, { ...ALL, generation: '1', to: folder }, never, watcher)
  t.strictSame(claims, Array(4).fill(`export-${process.pid}`), 'all that it reads is claimed')
  t.ok(readFileSync(path.join(folder, 'vda.raw')).equals(VDA))
  checkByReadme(t, folder)

  const converted = path.join(path.dirname(folder), 'converted')
  await exportCommand(clone, { generation: older, format: 'qcow2', to: converted }, never, NOBODY)
  t.strictSame(
    readdirSync(converted).filter(name => name.includes('vda')),
    ['vda.manifest', 'vda.qcow2'],
  )
  qemuCompare(
    t,
    [path.join(folder, 'vda.raw'), 'raw'],
    [path.join(converted, 'vda.qcow2'), 'qcow2'],
  )
})

function qemuCompare(t: Test, [a, f]: [string, string], [b, g]: [string, string]): void {
  const compared = spawnSync('qemu-img', ['compare', '-f', f, '-F', g, a, b], { encoding: 'utf8' })
  t.equal(compared.status, 0, compared.stdout + compared.stderr)
}

t.test('raw becomes qcow2 and raw again, and the guest sees the same bytes', async t => {
  const { clone, seeded } = await aStore(t, path.join(await aMedium(t, 'ext4'), 'store'))
  const dir = await aGeneration(clone, 1, { 'vda.raw': VDA, 'vdb.raw': VDB })
  const raw = path.join(dir, 'vda.raw')
  const folder = path.join(await aFolder(t), 'taken')
  const { disks } = await exportCommand(
    clone,
    { ...ALL, format: 'qcow2', to: folder },
    never,
    NOBODY,
  )
  const image = path.join(folder, 'vda.qcow2')
  const before = { format: 'raw', size: VDA.length, digest: sha256(manifestOf(VDA)) }
  t.match(disks[0], {
    ...{ target: 'vda', format: 'qcow2', size: statSync(image).size, convertedFrom: before },
    digest: sha256(manifestOf(readFileSync(image))),
  })
  t.strictSame(generationIn(folder).disks, disks)
  checkByReadme(t, folder)
  qemuCompare(t, [raw, 'raw'], [image, 'qcow2'])
  t.equal(spawnSync('qemu-img', ['check', '-f', 'qcow2', image]).status, 0)

  const ownership = { owner: '1', group: '6', mode: '0640', dirMode: '0750' }
  const owned = { ...seeded, ownership }
  const imported = await importCommand(owned, { folder, adopt: false }, never, NOBODY)
  const seen = (file: string) => {
    const { uid, gid, mode } = statSync(file)
    return [uid, gid, (mode & 0o777).toString(8)]
  }
  for (const name of readdirSync(imported.dir))
    t.strictSame(seen(path.join(imported.dir, name)), [1, 6, '640'], name)
  for (const one of [imported.dir, path.dirname(imported.dir), seeded.dir])
    t.strictSame(seen(one), [1, 6, '750'], one)
  t.match(await verifyCommand(seeded, undefined, never, NOBODY), { sound: true })

  const back = path.join(path.dirname(folder), 'back')
  await exportCommand(seeded, { ...ALL, format: 'raw', to: back }, never, NOBODY)
  t.ok(readFileSync(path.join(back, 'vda.raw')).equals(VDA))
  checkByReadme(t, back)
})

t.test('a qcow2 that names another file of this host is not converted', async t => {
  const dir = await aFolder(t)
  const { clone } = await aStore(t, path.join(dir, 'store'))
  const secret = path.join(dir, 'secret')
  await writeFile(secret, Buffer.alloc(MIB, 's'))
  for (const args of [
    ['-F', 'raw', '-b', secret],
    ['-o', `data_file=${path.join(dir, 'data')},data_file_raw=on`],
  ]) {
    const image = path.join(dir, 'made.qcow2')
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', ...args, image, '1M'])
    await rm(clone.dir, { recursive: true, force: true })
    await aGeneration(clone, 1, { 'vda.qcow2': readFileSync(image) })
    const to = path.join(dir, 'taken')
    await t.rejects(exportCommand(clone, { ...ALL, format: 'raw', to }, never, NOBODY), {
      code: 'UNSAFE',
      message: new RegExp(`needs another file, ${dir}/(secret|data)`),
    })
    t.notOk(existsSync(to))
  }
})

t.test('what is damaged is not exported, and nothing is left under either name', async t => {
  const dir = await aFolder(t)
  const { clone } = await aStore(t, path.join(await aMedium(t, 'xfs'), 'store'))
  const sound = await aGeneration(clone, 1, { 'vda.raw': VDA })
  const flip = (folder: string): void => {
    const image = openSync(path.join(folder, 'vda.raw'), 'r+')
    writeSync(image, 'x', 8 * CHUNK_SIZE + 99)
    closeSync(image)
  }
  const to = path.join(dir, 'taken')
  // Copied chunk by chunk to another file system; shared and read back on its own; read before a conversion.
  flip(sound)
  for (const [folder, format] of [
    [to, undefined],
    [path.join(path.dirname(clone.dir), '../taken'), undefined],
    [to, 'qcow2'],
  ] as const) {
    await t.rejects(
      exportCommand(clone, { ...ALL, format, to: folder }, never, NOBODY),
      { code: 'INTEGRITY', exit: 21, message: /vda\.raw: .*chunk 8 \(byte 8388608\)/ },
      `${folder} ${format}`,
    )
    t.notOk(existsSync(folder))
    t.notOk(existsSync(`${folder}.part`))
  }
  t.match(await verifyCommand(clone, undefined, never, NOBODY), { sound: false })
  for (const generation of ['1', undefined])
    await t.rejects(exportCommand(clone, { ...ALL, generation, to }, never, NOBODY), {
      code: 'INTEGRITY',
      message: /is damaged: vda: 1 bad chunks/,
    })

  const newer = await aGeneration(clone, 2, { 'vda.raw': VDA })
  await writeFile(path.join(newer, 'vda.manifest'), manifestOf(VDA).toUpperCase())
  await t.rejects(exportCommand(clone, { ...ALL, to }, never, NOBODY), {
    code: 'INTEGRITY',
    message: /vda\.manifest is not the manifest that generation\.json names/,
  })
  t.strictSame(readdirSync(path.join(newer, 'claims')), [])
})

t.test('only a folder of its own is filled', async t => {
  const dir = await aFolder(t)
  const { clone } = await aStore(t, path.join(dir, 'store'))
  await aGeneration(clone, 1, { 'vda.raw': VDB })
  const to = (name: string, generation?: string) =>
    exportCommand(clone, { ...ALL, generation, to: path.join(dir, name) }, never, NOBODY)
  await mkdir(path.join(dir, 'full/inner'), { recursive: true })
  await t.rejects(to('full'), { code: 'USAGE', message: /full exists and is not an empty folder/ })
  await t.rejects(to('store/mydomain/generations/x'), {
    code: 'USAGE',
    message: /lies in the clone/,
  })
  await t.rejects(to('nowhere/x'), { code: 'STANDBY_IO', message: /nowhere: no such file/ })
  await t.rejects(to('x', '7'), { code: 'USAGE', message: 'mydomain has no generation 7' })
  await mkdir(path.join(dir, 'foreign.part/inner'), { recursive: true })
  await t.rejects(to('foreign'), { code: 'UNSAFE', message: /foreign\.part is needed/ })
  t.ok(existsSync(path.join(dir, 'foreign.part/inner')))
  await mkdir(path.join(dir, 'mounted'))
  execFileSync('mount', ['-t', 'tmpfs', 'tmpfs', path.join(dir, 'mounted')])
  t.teardown(() => spawnSync('umount', ['--lazy', path.join(dir, 'mounted')]))
  await t.rejects(to('mounted'), { code: 'USAGE', message: /where a file system is mounted/ })
  await mkdir(path.join(dir, 'empty'))
  t.match(await to('empty'), { folder: path.join(dir, 'empty') })
  checkByReadme(t, path.join(dir, 'empty'))

  const unlock = lockClone(layoutOf(clone.dir), 'pull')
  await t.rejects(to('later'), { code: 'LOCKED', message: /clone pull/ })
  unlock()
  t.notOk(existsSync(path.join(dir, 'later.part')))
})

t.test('an export that does not fit is refused before a byte is written', async t => {
  const dir = await aFolder(t)
  const { clone } = await aStore(t, path.join(dir, 'store'))
  await aGeneration(clone, 1, { 'vda.raw': randomBytes(20 * MIB) })
  const small = await aMedium(t, 'ext4', 80)
  for (const format of [undefined, 'qcow2'] as const) {
    const to = path.join(small, 'taken')
    await t.rejects(exportCommand(clone, { ...ALL, format, to }, never, NOBODY), {
      code: 'SPACE',
      exit: 22,
      message: /taken\.part: [\d.]+ MiB free, but the export needs up to 84/,
    })
    t.notOk(existsSync(`${to}.part`))
  }
})

t.test('an interrupted export leaves nothing, a killed one what the next one clears', async t => {
  const medium = await aMedium(t, 'ext4')
  const { clone, file } = await aStore(t, path.join(medium, 'store'))
  const dir = await aGeneration(clone, 1, { 'vda.raw': randomBytes(30 * MIB) })
  const to = path.join(await aFolder(t), 'taken')
  const aborted = new AbortController()
  const watcher: Watcher = {
    ...NOBODY,
    progress: () => aborted.abort(new Failure('INTERRUPTED', 'interrupted by SIGINT')),
  }
  await t.rejects(exportCommand(clone, { ...ALL, to }, aborted.signal, watcher), {
    code: 'INTERRUPTED',
    exit: 130,
  })
  t.notOk(existsSync(to))
  t.notOk(existsSync(`${to}.part`))

  const args = [CLI, 'export', 'mydomain', '--to', to, '--config', file]
  const child = spawn(process.execPath, args, { stdio: 'ignore' })
  while (!existsSync(path.join(`${to}.part`, 'vda.raw'))) await sleep(2)
  await t.rejects(exportCommand(clone, { ...ALL, to }, never, NOBODY), {
    code: 'LOCKED',
    message: `${to}.part is being filled by process ${child.pid}`,
  })
  child.kill('SIGKILL')
  await once(child, 'exit')
  t.notOk(existsSync(to), 'nothing under the final name')
  t.strictSame(readdirSync(path.join(dir, 'claims')), [`export-${child.pid}`])
  await exportCommand(clone, { ...ALL, to }, never, NOBODY)
  checkByReadme(t, to)
  t.notOk(existsSync(path.join(to, '.nbd-clone')))
})

t.test('a folder that was tampered with seeds nothing', async t => {
  const dir = await aFolder(t)
  const { clone, seeded } = await aStore(t, path.join(dir, 'store'))
  await aGeneration(clone, 1, { 'vda.raw': VDA, 'vdb.raw': VDB })
  const folder = path.join(dir, 'taken')
  await exportCommand(clone, { ...ALL, to: folder }, never, NOBODY)
  const inFolder = (name: string): string => path.join(folder, name)
  const text = await readFile(inFolder('generation.json'), 'utf8')
  const json = (change: (generation: Generation) => object): (() => Promise<void>) => {
    const changed = JSON.stringify(change(JSON.parse(text) as Generation))
    return () => writeFile(inFolder('generation.json'), changed)
  }
  const disk = (change: object) =>
    json(generation => ({
      ...generation,
      disks: [{ ...generation.disks[0], ...change }, ...generation.disks.slice(1)],
    }))
  const flipped = Buffer.from(VDA)
  flipped.fill(1, 5 * MIB, 5 * MIB + 1)
  const TABLE: [what: string, code: string, message: RegExp, tamper: () => Promise<unknown>][] = [
    [
      'a flipped bit',
      'INTEGRITY',
      /vda\.raw: chunk 5/,
      () => writeFile(inFolder('vda.raw'), flipped),
    ],
    [
      'a shorter image',
      'INTEGRITY',
      /vda\.raw: \d+ bytes/,
      () => truncate(inFolder('vda.raw'), MIB),
    ],
    [
      'a longer image',
      'INTEGRITY',
      /vda\.raw: \d+ bytes/,
      () => truncate(inFolder('vda.raw'), 99 * MIB),
    ],
    [
      'image and manifest of another disk state',
      'INTEGRITY',
      /vda\.manifest is not the manifest/,
      async () => {
        await writeFile(inFolder('vda.raw'), flipped)
        await writeFile(inFolder('vda.manifest'), manifestOf(flipped))
      },
    ],
    ['a swapped digest', 'INTEGRITY', /vda\.manifest is not/, disk({ digest: 'a'.repeat(64) })],
    ['an image missing', 'USAGE', /there is no .*vdb\.raw/, () => rm(inFolder('vdb.raw'))],
    [
      'no such folder',
      'USAGE',
      /there is no .*generation\.json/,
      () => rm(folder, { recursive: true }),
    ],
    [
      'a link to a file of this host',
      'UNSAFE',
      /vda\.raw is not a plain file/,
      async () => {
        await rename(inFolder('vda.raw'), path.join(dir, 'elsewhere'))
        await symlink(path.join(dir, 'elsewhere'), inFolder('vda.raw'))
      },
    ],
    [
      'a pipe',
      'UNSAFE',
      /domain\.xml is not a plain file/,
      async () => {
        await rm(inFolder('domain.xml'))
        execFileSync('mkfifo', [inFolder('domain.xml')])
      },
    ],
    [
      'a target that leaves the folder',
      'INTEGRITY',
      /disks\.0\.target: a name is/,
      disk({ target: '../vda' }),
    ],
    [
      'a recovery point that leaves the store',
      'INTEGRITY',
      /recoveryPoint\.id: not a/,
      json(one => ({ ...one, recoveryPoint: { ...one.recoveryPoint, id: '../../x' } })),
    ],
    ['a disk twice', 'INTEGRITY', /names a disk twice/, disk({ target: 'vdb' })],
    ['an endless disk', 'INTEGRITY', /vda is over 64 TiB/, disk({ size: 2 ** 50 })],
    [
      'other chunks',
      'INTEGRITY',
      /its chunks are 4096 bytes/,
      json(one => ({ ...one, chunkSize: 4096 })),
    ],
    [
      'a file name of its own',
      'INTEGRITY',
      /definition\.inactive/,
      json(one => ({ ...one, definition: { inactive: '/etc/passwd', live: null } })),
    ],
    [
      'half a file',
      'INTEGRITY',
      /generation\.json: not JSON/,
      () => truncate(inFolder('generation.json'), 99),
    ],
    [
      'an empty definition',
      'INTEGRITY',
      /domain\.xml is empty/,
      () => writeFile(inFolder('domain.xml'), '\n'),
    ],
    [
      'a definition without end',
      'INTEGRITY',
      /domain\.xml: 5242880 bytes; at most/,
      () => truncate(inFolder('domain.xml'), 5 * MIB),
    ],
    [
      'another domain',
      'UNSAFE',
      /is of domain other, but the clone seeded is of/,
      async () => {
        await json(one => ({ ...one, domain: 'other' }))()
        await writeFile(
          inFolder('domain.xml'),
          `<domain><name>other</name><uuid>${UUID}</uuid></domain>`,
        )
      },
    ],
    [
      'a definition of another domain',
      'INTEGRITY',
      /domain XML is refused: its name is "other", not mydomain/,
      () => writeFile(inFolder('domain.xml'), '<domain><name>other</name></domain>'),
    ],
    [
      'a definition with entities',
      'INTEGRITY',
      /domain XML refused: it has a doctype/,
      () => writeFile(inFolder('domain.xml'), '<!DOCTYPE a [<!ENTITY b "c">]><domain>&b;</domain>'),
    ],
    [
      'a definition that is not UTF-8',
      'INTEGRITY',
      /domain\.xml is not UTF-8/,
      () => writeFile(inFolder('domain.xml'), Buffer.from('<domain>\xff</domain>', 'latin1')),
    ],
    [
      'a network of another name',
      'INTEGRITY',
      /XML of network "default" is refused: its name is "evil"/,
      json(one => ({
        ...one,
        networks: [{ name: 'default', xml: '<network><name>evil</name></network>' }],
      })),
    ],
  ]
  const kept = path.join(dir, 'kept')
  await rename(folder, kept)
  for (const [what, code, message, tamper] of TABLE) {
    execFileSync('cp', ['--archive', '--sparse=always', kept, folder])
    await tamper()
    await t.rejects(
      importCommand(seeded, { folder, adopt: false }, never, NOBODY),
      { code, message },
      what,
    )
    t.strictSame(await soundGenerations(seeded.dir), [], what)
    const { staging } = layoutOf(seeded.dir)
    t.strictSame(existsSync(staging) ? readdirSync(staging) : [], [], what)
    await rm(folder, { recursive: true, force: true })
  }

  const state = await readState(layoutOf(seeded.dir))
  t.equal(state.bound, null)
  await writeState(layoutOf(seeded.dir), { ...state, bound: { hostId: UUID, domainUuid: UUID } })
  const again = (adopt: boolean) => importCommand(seeded, { folder: kept, adopt }, never, NOBODY)
  await t.rejects(again(false), { code: 'UNSAFE', message: /belongs to domain/ })
  t.match(await again(true), { id: idOf(1) })
  t.match(await readState(layoutOf(seeded.dir)), { bound: { hostId: HOST, domainUuid: UUID } })
})
