// What a clone is on disk: plan and manifest, the order of a publish, crash points, retention, history, who may write.

import t from 'tap'
import { execFileSync, spawn } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { closeSync, openSync, readFileSync, truncateSync, writeFileSync, writeSync } from 'node:fs'
import {
  mkdir,
  mkdtemp,
  open,
  readdir,
  readlink,
  rename,
  rm,
  symlink,
  writeFile,
} from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { createImage, openImage } from '../client/copy/image.ts'
import { openPool } from '../client/copy/pool.ts'
import { allRuns, workOff } from '../client/copy/runs.ts'
import { writer } from '../client/copy/writer.ts'
import { freshness, isDue } from '../client/freshness.ts'
import { CHUNK_SIZE, chunkCount, planPull, type Held, type Means } from '../client/plan.ts'
import { repairCurrent } from '../client/store/current.ts'
import { ofStore } from '../client/store/failure.ts'
import { listGenerations, soundGenerations, type Generation } from '../client/store/generation.ts'
import { checkBinding, checkRole } from '../client/store/guard.ts'
import { layoutOf, makeFolders, type Layout } from '../client/store/layout.ts'
import { LINE, manifestDigest, readDigests, writeDigests } from '../client/store/manifest.ts'
import { prune } from '../client/store/prune.ts'
import { tidyStaging } from '../client/store/donor.ts'
import { publish, seal } from '../client/store/publish.ts'
import { readState, writeState, type State } from '../client/store/state.ts'
import { Failure } from '../shared/failures.ts'

const never = new AbortController().signal

async function emptyClone(t: Tap): Promise<Layout> {
  const dir = await mkdtemp(path.join(tmpdir(), 'nbd-clone-test-'))
  t.teardown(() => rm(dir, { recursive: true, force: true }))
  const layout = layoutOf(path.join(dir, 'store', 'mydomain'))
  await makeFolders(layout)
  return layout
}
interface Tap {
  teardown(fn: () => unknown): unknown
}

const HOST = '6b0f2d7e-3b57-4c83-9e0c-2f1f0f4b6a01'
const UUID = '0d3b9a52-7a0e-4a53-8f4e-6f0d6b2b7c11'
const idOf = (seq: number): string => `20261120T03000${seq}Z-00a${seq}`

function generationOf(seq: number): Generation {
  return {
    schema: 1,
    seq,
    domain: 'mydomain',
    source: { hostId: HOST, domainUuid: UUID, epoch: 0 },
    recoveryPoint: {
      id: idOf(seq),
      instant: '2026-11-20T03:00:00.000Z',
      consistency: 'quiesced',
      clockSkewMs: 0,
    },
    chunkSize: CHUNK_SIZE,
    disks: [{ target: 'vda', format: 'raw', size: 4, digest: 'a'.repeat(64), layers: [] }],
    omitted: [],
    definition: { inactive: 'domain.xml', live: null },
    nvram: null,
    networks: [],
    pools: [],
    host: { libvirt: '9', qemu: '7', arch: 'x86_64', machine: 'q35', cpu: 'x' },
    verified: { level: 'all', at: '2026-11-20T03:01:00.000Z' },
  }
}

async function publishOne(layout: Layout, seq: number): Promise<string> {
  const staging = path.join(layout.staging, idOf(seq))
  await mkdir(staging)
  await writeFile(path.join(staging, 'vda.raw'), 'data')
  await seal(layout, generationOf(seq))
  return publish(layout, idOf(seq))
}

async function stateOf(layout: Layout, change: Partial<State>): Promise<State> {
  const state = { ...(await readState(layout)), ...change }
  await writeState(layout, state)
  return state
}

t.test('a plan says how each disk is got, and why', t => {
  const vda = { target: 'vda', format: 'raw', size: 3 * CHUNK_SIZE + 1 } as const
  const held = { ...vda, id: 'RP', damaged: false }
  const means: Means = {
    ...{ digests: true, full: false, verify: 'readback', donor: undefined },
    changes: new Map([['vda', { reason: 'R' }]]),
  }
  const changes = new Map([['vda', { bytes: 65_536 }]])
  const TABLE: [held: Held[] | undefined, means: Partial<Means>, ...plan: string[]][] = [
    [undefined, {}, 'full: first pull'],
    [undefined, { verify: 'source' }, 'hash: first pull; verify: source'],
    [undefined, { donor: 'D' }, 'hash: first pull; D was interrupted'],
    [undefined, { donor: 'D', digests: false }, 'full: first pull'],
    [undefined, { donor: 'D', full: true }, 'full: first pull'],
    [[], {}, 'full: the disk is new'],
    [[{ ...held, target: 'vdb' }], {}, 'full: the disk is new'],
    [[{ ...held, format: 'qcow2' }], {}, 'full: its format was qcow2'],
    [[held], {}, 'hash: compared with RP; R', 'RP'],
    [[held], { changes: new Map() }, 'hash: compared with RP; changes are not recorded', 'RP'],
    [[held], { changes: undefined }, 'changed: compared with RP', 'RP'],
    [[held], { changes }, 'changed: 64 KiB changed since RP', 'RP'],
    [[held], { changes, compare: 'C' }, 'hash: compared with RP; C', 'RP'],
    [[held], { changes, verify: 'source' }, 'hash: compared with RP; verify: source', 'RP'],
    [[held], { changes, full: true }, 'full: --full was given', 'RP'],
    [
      [{ ...held, damaged: true }],
      { changes },
      'full: damage is known that may be in RP, too',
      'RP',
    ],
    [[{ ...held, format: 'qcow2' }], { changes }, 'full: its format was qcow2'],
    [[held], { donor: 'D' }, 'hash: compared with RP; R', 'RP'],
    [[{ ...held, size: 512 }], {}, 'hash: compared with RP, where its size was 512 bytes; R', 'RP'],
    [[held], { full: true }, 'full: --full was given', 'RP'],
    [[held], { digests: false }, 'full: the source is too old to give digests', 'RP'],
    [[{ ...held, damaged: true }], {}, 'full: damage is known that may be in RP, too', 'RP'],
    [
      [{ ...held, damaged: true }],
      { donor: 'D' },
      'hash: damage is known that may be in RP, too; D was interrupted',
      'RP',
    ],
  ]
  for (const [held, some, way = '', basis] of TABLE) {
    const [kind, reason] = way.split(/: (.*)/)
    const expected = { ...vda, kind, reason, chunks: 4, ...(basis !== undefined && { basis }) }
    t.strictSame(planPull([vda], held, { ...means, ...some }), [expected], way)
  }
  t.equal(planPull([{ ...vda, size: 0 }], undefined, means)[0]?.chunks, 0)
  t.end()
})

t.test('manifest and plan of a 1 TiB disk take less than 100 MB', async t => {
  const layout = await emptyClone(t)
  const script = `
    const { planPull } = await import('./dist/client/plan.js')
    const { writeDigests, manifestDigest } = await import('./dist/client/store/manifest.js')
    const { openSync } = await import('node:fs')
    const before = process.memoryUsage().rss
    let most = before
    const [plan] = planPull([{ target: 'vda', format: 'raw', size: 1024 ** 4 }], undefined, {})
    const fd = openSync(process.argv[1], 'w')
    const digests = Array(1024).fill('ab'.repeat(32))
    for (let chunk = 0; chunk < plan.chunks; chunk += 1024) {
      writeDigests(fd, chunk, digests)
      most = Math.max(most, process.memoryUsage().rss)
    }
    await manifestDigest(process.argv[1], plan.chunks)
    most = Math.max(most, process.memoryUsage().rss)
    console.log(JSON.stringify({ chunks: plan.chunks, grown: most - before }))`
  const file = path.join(layout.dir, 'manifest')
  const args = ['--input-type=module', '-e', script, file]
  const { chunks, grown } = JSON.parse(
    execFileSync(process.execPath, args, { encoding: 'utf8' }),
  ) as { chunks: number; grown: number }
  t.equal(chunks, 1024 * 1024)
  t.ok(grown < 100e6, `${grown} bytes`)
})

t.test('a manifest line is found by its number, and a damaged one is no digest', async t => {
  const layout = await emptyClone(t)
  const file = path.join(layout.dir, 'vda.manifest')
  const fd = openSync(file, 'w+')
  t.teardown(() => closeSync(fd))
  writeDigests(fd, 2, ['c'.repeat(64)])
  writeDigests(fd, 0, ['a'.repeat(64), 'b'.repeat(64)])
  t.strictSame(readDigests(fd, 1, 3), ['b'.repeat(64), 'c'.repeat(64), ''])
  const whole = readFileSync(file)
  t.equal(whole.length, 3 * LINE)
  t.equal(await manifestDigest(file, 3), createHash('sha256').update(whole).digest('hex'))
  await t.rejects(manifestDigest(file, 4), { code: 'INTEGRITY' })
  writeSync(fd, 'X', 0)
  t.equal(readDigests(fd, 0, 1)[0], '')
})

t.test('verify names exactly the chunks that differ, are missing or have no digest', async t => {
  const layout = await emptyClone(t)
  const size = 40 * CHUNK_SIZE + 777
  const content = Buffer.concat([
    randomBytes(10 * CHUNK_SIZE),
    Buffer.alloc(30 * CHUNK_SIZE),
    randomBytes(777),
  ])
  const [file, manifest] = [path.join(layout.dir, 'a.raw'), path.join(layout.dir, 'a.manifest')]
  writeFileSync(file, content)
  execFileSync('sh', ['-c', `split -b 1M --filter='sha256sum | cut -c1-64' ${file} > ${manifest}`])
  await using pool = openPool(1)
  const check = async () => {
    await using image = await openImage(file, manifest)
    const { fd, direct, manifest: lines } = image
    const job = { kind: 'check', size, fd, direct, manifest: lines } as const
    return await workOff(allRuns(chunkCount(size)), () => job, file, { pool, signal: never })
  }
  t.strictSame(await check(), [], 'what coreutils made is good')

  const image = openSync(file, 'r+')
  for (const chunk of [3, 17]) writeSync(image, 'x', chunk * CHUNK_SIZE + 5)
  closeSync(image)
  const lines = openSync(manifest, 'r+')
  writeSync(lines, '-', 20 * LINE)
  closeSync(lines)
  truncateSync(file, size - 1)
  t.strictSame(await check(), [
    { chunk: 3, why: 'differs' },
    { chunk: 17, why: 'differs' },
    { chunk: 20, why: 'no digest' },
    { chunk: 40, why: 'unreadable' },
  ])
})

t.test('a new image is as large as its disk, and takes no space', async t => {
  const layout = await emptyClone(t)
  const file = path.join(layout.dir, 'a.raw')
  await using image = await createImage(file, `${file}.manifest`, 10 * CHUNK_SIZE)
  t.equal(image.file, file)
  const [size, blocks] = execFileSync('stat', ['-c', '%s %b', file], { encoding: 'utf8' }).split(
    ' ',
  )
  t.strictSame([Number(size), Number(blocks)], [10 * CHUNK_SIZE, 0])
  await t.rejects(createImage(file, `${file}.manifest`, 1), { code: 'STANDBY_IO', message: file })
})

t.test('chunks written at once, in any order, all land where they belong', async t => {
  const layout = await emptyClone(t)
  const file = path.join(layout.dir, 'a.raw')
  const content = randomBytes(30 * CHUNK_SIZE + 777)
  await using image = await createImage(file, `${file}.manifest`, content.length)
  const chunks = Array.from({ length: 31 }, (_, at) => (at * 7) % 31)
  const bytes = (chunk: number) => content.subarray(chunk * CHUNK_SIZE, (chunk + 1) * CHUNK_SIZE)
  await Promise.all(chunks.map(chunk => image.write(bytes(chunk), chunk * CHUNK_SIZE)))
  t.ok(readFileSync(file).equals(content))
})

t.test('every write of a run that fails is told the reason', async t => {
  const file = await open('/dev/full', 'r+')
  t.teardown(() => file.close())
  const write = writer(file, file)
  const bytes = Buffer.alloc(CHUNK_SIZE)
  const results = await Promise.allSettled([0, 1, 2, 9].map(at => write(bytes, at * CHUNK_SIZE)))
  for (const result of results) t.match(result, { status: 'rejected', reason: { code: 'ENOSPC' } })
})

t.test('a publish leaves one generation, an empty staging and current on it', async t => {
  const layout = await emptyClone(t)
  const state = await readState(layout)
  t.equal(await publishOne(layout, 1), path.join(layout.generations, idOf(1)))
  await repairCurrent(layout, state, await soundGenerations(layout.dir))
  t.strictSame(await readdir(layout.staging), [])
  t.equal(await readlink(layout.current), `generations/${idOf(1)}`)
  t.strictSame((await listGenerations(layout.dir))[0]?.generation, generationOf(1))
})

t.test('of what crashes leave in staging the newest pull is kept, for its bytes', async t => {
  const layout = await emptyClone(t)
  await publishOne(layout, 1)
  for (const name of ['incoming', `${idOf(1)}.doomed`, idOf(2), idOf(3)])
    await mkdir(path.join(layout.staging, name))
  t.strictSame(
    (await listGenerations(layout.dir)).map(({ id }) => id),
    [idOf(1)],
  )
  t.equal(await tidyStaging(layout), path.join(layout.staging, idOf(3)))
  t.strictSame(await readdir(layout.staging), [idOf(3)])
})

t.test('a crash after the rename leaves current missing or old, which is repaired', async t => {
  const layout = await emptyClone(t)
  const state = await readState(layout)
  await publishOne(layout, 1)
  await repairCurrent(layout, state, await soundGenerations(layout.dir))
  await publishOne(layout, 2)
  await symlink('generations/nowhere', `${layout.current}.new`)
  await repairCurrent(layout, state, await soundGenerations(layout.dir))
  t.equal(await readlink(layout.current), `generations/${idOf(2)}`)
  await rm(layout.current)
  await repairCurrent(layout, { ...state, selected: 1 }, await soundGenerations(layout.dir))
  t.equal(await readlink(layout.current), `generations/${idOf(1)}`)
})

t.test('a broken generation.json is named, and the others are listed', async t => {
  const layout = await emptyClone(t)
  await publishOne(layout, 1)
  await publishOne(layout, 2)
  const file = path.join(layout.generations, idOf(2), 'generation.json')
  for (const text of ['{', '{}', JSON.stringify(generationOf(3))]) {
    await writeFile(file, text)
    const found = await listGenerations(layout.dir)
    t.strictSame(
      found.map(({ id }) => id),
      [idOf(1), idOf(2)],
    )
    t.match(found[1]?.broken, file)
  }
})

const LAST_2 = { last: 2, hourly: 0, daily: 0, weekly: 0, monthly: 0 }

t.test('prune removes the oldest, never a claimed, selected or open one', async t => {
  const layout = await emptyClone(t)
  for (const seq of [1, 2, 3, 4, 5, 6]) await publishOne(layout, seq)
  await mkdir(path.join(layout.generations, idOf(1), 'claims'))
  await writeFile(path.join(layout.generations, idOf(1), 'claims', 'test-boot'), '')
  const image = path.join(layout.generations, idOf(2), 'vda.raw')
  const holder = spawn('sleep', ['100'], { stdio: [openSync(image, 'r'), 'ignore', 'ignore'] })
  t.teardown(() => holder.kill('SIGKILL'))
  const state = await stateOf(layout, { selected: 3 })
  const would = await prune(layout, state, LAST_2, true)
  t.equal((await listGenerations(layout.dir)).length, 6, 'a dry run removes nothing')
  const plan = await prune(layout, state, LAST_2)
  t.strictSame(plan, would)
  t.strictSame(
    plan.remove.map(({ seq }) => seq),
    [4],
  )
  t.match(
    plan.spared.map(({ why }) => why),
    [/claimed: test-boot/, /in use: process .*sleep/, 'selected'],
  )
  const left = (await soundGenerations(layout.dir)).map(({ generation }) => generation.seq)
  t.strictSame(left, [1, 2, 3, 5, 6])
  t.strictSame(await readdir(layout.staging), [])
})

t.test('a state that cannot be understood is refused, because it hides the role', async t => {
  const layout = await emptyClone(t)
  t.match(await readState(layout), { role: 'standby', epoch: 0, bound: null })
  await writeFile(layout.state, '{"role":')
  await t.rejects(readState(layout), { code: 'UNSAFE', message: layout.state })
  const state = { role: 'failed-over' } as State
  t.throws(() => checkRole(layout, state), { code: 'UNSAFE', message: /role failed-over/ })
})

t.test('a clone of another host or domain is refused, unless adopted', async t => {
  const layout = await emptyClone(t)
  const mine = { hostId: HOST, domainUuid: UUID }
  const other = { hostId: HOST, domainUuid: HOST }
  checkBinding(layout, null, mine, false)
  checkBinding(layout, mine, mine, false)
  checkBinding(layout, other, mine, true)
  t.throws(() => checkBinding(layout, other, mine, false), {
    code: 'UNSAFE',
    message: /belongs to domain/,
  })
})

t.test('freshness is the age of the recovery point on the source clock', t => {
  const at = (ageMs: number, clockSkewMs = 0): Generation => {
    const one = generationOf(1)
    const instant = new Date(1e12 - ageMs + clockSkewMs).toISOString()
    return { ...one, recoveryPoint: { ...one.recoveryPoint, instant, clockSkewMs } }
  }
  const MIN = 60_000
  const TABLE: [what: string, newest: Generation | undefined, state: string, ageMs?: number][] = [
    ['nothing yet', undefined, 'none'],
    ['within the RPO', at(10 * MIN), 'fresh', 10 * MIN],
    ['over the RPO', at(61 * MIN), 'stale', 61 * MIN],
    ['a source whose clock is 4 min ahead', at(10 * MIN, 4 * MIN), 'fresh', 10 * MIN],
    ['a source whose clock is 6 min ahead', at(10 * MIN, 6 * MIN), 'unknown'],
    ['a recovery point in the future', at(-MIN), 'unknown'],
  ]
  for (const [what, newest, state, ageMs] of TABLE) {
    const found = freshness(newest, 60 * MIN, 1e12)
    t.match({ ...found }, { state }, what)
    t.equal(found.ageMs, ageMs, what)
  }
  t.equal(isDue({ state: 'fresh', ageMs: 29 * MIN }, 60 * MIN), false)
  t.equal(isDue({ state: 'fresh', ageMs: 30 * MIN }, 60 * MIN), true)
  t.equal(isDue({ state: 'unknown', ageMs: undefined }, 60 * MIN), true)
  t.end()
})

t.test('what is renamed away between two steps does not confuse the list', async t => {
  const layout = await emptyClone(t)
  await publishOne(layout, 1)
  await mkdir(path.join(layout.generations, 'lost+found'))
  await rename(path.join(layout.generations, idOf(1)), path.join(layout.staging, idOf(1)))
  t.strictSame(await listGenerations(layout.dir), [])
  t.strictSame(await listGenerations(path.join(layout.dir, 'nowhere')), [])
})

t.test('an error of the store keeps its kind, also when clearing up fails after it', t => {
  const errno = (code: string, file?: string) =>
    Object.assign(new Error(`${code}: why, write`), { code, ...(file && { path: file }) })
  const suppressed = (first: unknown) =>
    Object.assign(new Error('two'), {
      name: 'SuppressedError',
      error: errno('EIO'),
      suppressed: first,
    })
  const TABLE: [thrown: unknown, code: string][] = [
    [errno('ENOSPC'), 'SPACE'],
    [errno('ENOSPC', '/clones/a/state.json'), 'SPACE'],
    [errno('EIO'), 'STANDBY_IO'],
    [errno('EIO', '/elsewhere'), 'INTERNAL'],
    [errno('ECONNRESET'), 'INTERNAL'],
    [suppressed(errno('ENOSPC')), 'SPACE'],
    [suppressed(suppressed(new Failure('MERGE_FAILED', 'no'))), 'MERGE_FAILED'],
    [undefined, 'INTERNAL'],
  ]
  for (const [thrown, code] of TABLE) t.equal(ofStore('/clones/a', thrown).code, code)
  t.end()
})
