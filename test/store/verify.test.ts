// verify, repair and reverify: what is found wrong with a generation, what that does to it, and what sets it right.

import { Failure } from '../../shared/failures.ts'
import t, { type Test } from 'tap'
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { existsSync, readFileSync, readlinkSync } from 'node:fs'
import { copyFile, mkdir, open, rm, symlink, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { pino } from 'pino'
import { NOBODY } from '../../client/attempt.ts'
import {
  exitOf,
  verifyAll,
  verifyCommand,
  type Manner,
  type Verified,
} from '../../client/commands/verify.ts'
import { cloneConfig, loadConfig, type CloneConfig } from '../../client/config/effective.ts'
import { pastCache } from '../../client/copy/medium.ts'
import { CHUNK_SIZE } from '../../client/plan.ts'
import { pull } from '../../client/pull.ts'
import type { Pulled } from '../../client/pulled.ts'
import { reverifyDue, reverifyIfDue } from '../../client/reverify.ts'
import { recordFullRead } from '../../client/store/full-read.ts'
import { soundGenerations } from '../../client/store/generation.ts'
import { layoutOf } from '../../client/store/layout.ts'
import { recordName } from '../../client/store/record.ts'
import { verifiedOf } from '../../client/store/verified.ts'
import { fakeSource, refusing, type FakeSource } from '../client/fake-source.ts'
import { aMedium } from '../client/medium.ts'
import { unreadable } from '../client/unreadable.ts'

const log = pino({ level: 'silent' })
const never = new AbortController().signal
const CHUNKS = 4
const chunkOf = (content: Buffer, chunk: number): Buffer =>
  content.subarray(chunk * CHUNK_SIZE, (chunk + 1) * CHUNK_SIZE)

interface Clone {
  readonly source: FakeSource
  readonly config: CloneConfig
  /** As the source had it at the older and at the newer pull; chunk 1 differs, chunk 2 is zeros in both. */
  readonly older: Buffer
  readonly newer: Buffer
  readonly first: Pulled
  readonly second: Pulled
}

const media = { reflink: await aMedium(t, 'xfs'), 'in-place': await aMedium(t, 'ext4', 256) }
let clones = 0

/** Two generations of one disk: each whole, or, kept in place, the older one a record against the newer one. */
async function aClone(t: Test, generations: keyof typeof media = 'reflink'): Promise<Clone> {
  const older = Buffer.concat([
    randomBytes(2 * CHUNK_SIZE),
    Buffer.alloc(CHUNK_SIZE),
    randomBytes(777),
  ])
  const newer = Buffer.from(older)
  randomBytes(CHUNK_SIZE).copy(newer, CHUNK_SIZE)
  const source = await fakeSource({ vda: older })
  t.teardown(() => source[Symbol.asyncDispose]())
  const dir = path.join(media[generations], String(clones++), 'mydomain')
  const clone = { ...cloneConfig(loadConfig(source.configFile), 'mydomain'), dir, generations }
  const first = await pullOf(clone)
  await writeFile(source.file('vda'), newer)
  const second = await pullOf(clone)
  source.calls.length = 0
  return { source, config: clone, older, newer, first, second }
}

function pullOf(clone: CloneConfig): Promise<Pulled> {
  const options = { adopt: false, full: false, signal: never, log, watcher: NOBODY }
  return pull(clone, options)
}

const verifyOf = ({ config }: Clone, which?: string, manner: Manner = 'bytes'): Promise<Verified> =>
  verifyCommand(config, which, never, NOBODY, manner)

/** The older generation's record, of a clone kept in place. */
const recordOf = ({ first, second }: Clone): string =>
  path.join(first.dir, recordName({ target: 'vda', format: 'raw' }, second.recoveryPoint))

async function flip(file: string, byte: number): Promise<void> {
  const handle = await open(file, 'r+')
  const bytes = Buffer.alloc(1)
  await handle.read(bytes, 0, 1, byte)
  bytes[0] = (bytes[0] ?? 0) ^ 1
  await handle.write(bytes, 0, 1, byte)
  await handle.sync()
  await handle.close()
}

const imageOf = ({ dir }: Pulled): string => path.join(dir, 'vda.raw')
const damageIn = ({ dir }: Pulled): string =>
  existsSync(path.join(dir, 'damaged.json'))
    ? readFileSync(path.join(dir, 'damaged.json'), 'utf8')
    : ''
async function lastVerified({ config }: Clone): Promise<unknown> {
  const [oldest] = await soundGenerations(config.dir)
  return oldest && (await verifiedOf(oldest))
}
const currentOf = ({ config }: Clone): string | undefined => {
  const link = path.join(config.dir, 'current')
  return existsSync(link) ? path.basename(readlinkSync(link)) : undefined
}

t.test('a bad chunk of a chain is named with its file, whoever is verified', async t => {
  const clone = await aClone(t, 'in-place')
  const record = recordOf(clone)
  t.match(await verifyOf(clone, '1'), { sound: true })
  t.match(await lastVerified(clone), {
    level: 'all',
  })

  await flip(record, CHUNK_SIZE + 5)
  t.match(await verifyOf(clone, '1'), {
    sound: false,
    disks: [{ bad: [{ chunk: 1, byte: CHUNK_SIZE, file: record, why: 'differs' }] }],
  })
  t.match(damageIn(clone.first), /chunk 1 \(byte 1048576\)/)
  t.match(await verifyOf(clone), { sound: true }, 'the newer one does not need the record')
  await flip(record, CHUNK_SIZE + 5)

  await flip(imageOf(clone.second), 3 * CHUNK_SIZE + 776)
  const last = { chunk: 3, byte: 3 * CHUNK_SIZE, file: imageOf(clone.second), why: 'differs' }
  const verified = await verifyOf(clone, '1')
  t.match(verified, { disks: [{ bad: [last] }], alsoDamaged: [clone.second.recoveryPoint] })
  t.equal(exitOf([verified]), 21)
  t.equal(currentOf(clone), undefined, 'neither is there to be started')
  t.match(damageIn(clone.second), /chunk 3/)

  await flip(imageOf(clone.second), 3 * CHUNK_SIZE + 776)
  const all = await verifyAll(clone.config, never, NOBODY)
  t.match(all, [{ sound: true }, { sound: true }])
  t.equal(currentOf(clone), clone.second.recoveryPoint)
})

t.test('what cannot be read is damage, found and recorded, and ends no verify', async t => {
  const clone = await aClone(t)
  await t.test('a range of an image', async t => {
    await unreadable(t, imageOf(clone.second), CHUNK_SIZE + 4096, 4096)
    const verified = await verifyOf(clone)
    t.match(verified, { sound: false, disks: [{ bad: [{ chunk: 1, why: 'unreadable' }] }] })
    t.equal(verified.disks[0]?.bad.length, 1, 'and nothing else')
    t.match(damageIn(clone.second), /1 bad chunks/)
    t.equal(currentOf(clone), clone.first.recoveryPoint)
  })
  await t.test('a manifest', async t => {
    await unreadable(t, path.join(clone.first.dir, 'vda.manifest'), 0, 65)
    const verified = await verifyOf(clone, '1')
    t.match(verified, { sound: false, disks: [{ manifest: /vda\.manifest: unreadable/ }] })
    t.match(damageIn(clone.first), /unreadable/)
    t.equal(exitOf([verified]), 21)
  })
  await t.test('the record of damage itself', async t => {
    const record = path.join(clone.first.dir, 'damaged.json')
    await rm(record)
    // Nothing is mapped at its beginning, so a read is EIO.
    await symlink('/proc/self/mem', record)
    const [found] = await soundGenerations(clone.config.dir)
    t.match(found?.damaged, /damaged\.json cannot be read \(EIO\)/)
    await rm(record)
    await mkdir(`${record}.new`)
    t.teardown(() => rm(`${record}.new`, { recursive: true }))
    await flip(imageOf(clone.first), 0)
    const verified = await verifyOf(clone, '1')
    t.match(verified, { sound: false, unrecorded: { message: /EISDIR|illegal operation/ } })
    t.equal(exitOf([verified]), 21)
    await flip(imageOf(clone.first), 0)
  })
  for (const [code, exit] of [
    ['SPACE', 22],
    ['STANDBY_IO', 23],
    ['INTERNAL', 23],
  ] as const) {
    const unrecorded = new Failure(code, 'why')
    t.equal(exitOf([{ clone: 'c', id: 'i', disks: [], sound: true, unrecorded }]), exit)
  }
})

t.test('bytes of the medium, or it is said that they are not', async t => {
  const clone = await aClone(t)
  const file = imageOf(clone.first)
  const probe = Buffer.alloc(2 * 4096)
  // A device without reads: it can be opened, and refuses them with EINVAL as some file systems refuse O_DIRECT.
  const refusing = await open('/dev/btrfs-control', 'r')
  t.teardown(() => refusing.close())
  const cached = (): number =>
    Number(execFileSync('fincore', ['--noheadings', '-o', 'PAGES', file], { encoding: 'utf8' }))
  readFileSync(file)
  t.ok(cached() > 0)
  const medium = await pastCache(file, refusing.fd, probe, never)
  t.strictSame(medium, { direct: undefined, cached: false })
  t.equal(cached(), 0, 'its pages were dropped')

  const mounted = path.join(clone.source.dir, 'ramfs')
  await mkdir(mounted)
  execFileSync('mount', ['-t', 'ramfs', 'ramfs', mounted])
  t.teardown(() => spawnSync('umount', ['--lazy', mounted]))
  execFileSync('cp', ['-a', clone.config.dir, mounted])
  const inMemory = { ...clone.config, dir: path.join(mounted, 'mydomain') }
  // What its pulls have proven was on another medium.
  await rm(path.join(inMemory.dir, 'verified.json'))
  const verified = await verifyCommand(inMemory, undefined, never, NOBODY)
  t.match(verified, { sound: true, disks: [{ cached: [/vda\.raw$/] }] })
  t.notOk(existsSync(path.join(inMemory.dir, 'verified.json')), 'nothing of a medium was proven')
})

t.test('a bad chunk that another generation has is repaired without a session', async t => {
  const clone = await aClone(t)
  for (const chunk of [0, 3]) await flip(imageOf(clone.second), chunk * CHUNK_SIZE + 9)
  const verified = await verifyOf(clone, undefined, 'repair')
  t.match(verified, { sound: true, repaired: { local: 2, fetched: 0, lost: [] } })
  t.equal(exitOf([verified]), 0)
  t.strictSame(clone.source.calls, [])
  t.ok(readFileSync(imageOf(clone.second)).equals(clone.newer))
  t.equal(damageIn(clone.second), '')
  t.equal(currentOf(clone), clone.second.recoveryPoint)
})

t.test('a bad chunk is fetched from the source when it still has it', async t => {
  const clone = await aClone(t, 'in-place')
  const record = recordOf(clone)
  await flip(imageOf(clone.second), 0)
  await flip(record, CHUNK_SIZE)
  const verified = await verifyOf(clone, undefined, 'repair')
  const { source } = clone
  t.match(verified, {
    sound: true,
    alsoDamaged: undefined,
    repaired: { local: 0, fetched: 1, lost: [], source: 'merged' },
  })
  t.equal(source.calls.filter(call => call === 'session.open').length, 1)
  t.ok(source.calls.includes('session.release'))
  t.ok(readFileSync(imageOf(clone.second)).equals(clone.newer))

  const older = await verifyOf(clone, '1', 'repair')
  t.match(older, {
    sound: false,
    repaired: { fetched: 0, lost: [{ chunk: 1, file: record, reason: /others now/ }] },
  })
  t.equal(exitOf([older]), 21)
  t.match(damageIn(clone.first), /chunk 1/)
  t.equal(currentOf(clone), clone.second.recoveryPoint)

  await writeFile(source.file('vda'), clone.older)
  t.match(await verifyOf(clone, '1', 'repair'), { sound: true, repaired: { fetched: 1 } })
  t.ok(chunkOf(readFileSync(record), 1).equals(chunkOf(clone.older, 1)))
  t.equal(source.gates(), 0, 'no gate is left')
})

t.test('what the source no longer has stays bad, each with its reason', async t => {
  const clone = await aClone(t)
  const { source } = clone
  await flip(imageOf(clone.second), CHUNK_SIZE)
  const usual = { ...source.handlers }
  type Case = [what: string, arrange: () => unknown, reason: RegExp, exit: number]
  const CASES: Case[] = [
    ['overwritten', () => writeFile(source.file('vda'), clone.older), /others now/, 21],
    ['shorter', () => writeFile(source.file('vda'), 'x'.repeat(512)), /512 bytes long now/, 21],
    [
      'not exported any more',
      () =>
        (source.handlers.describe = async () => ({
          ...(await usual.describe({ domain: 'mydomain' })),
          disks: [{ target: 'vda', exported: false, reason: 'a CD-ROM now' }],
        })),
      /a CD-ROM now/,
      21,
    ],
    [
      'refused',
      () => (source.handlers['session.open'] = refusing('SNAPSHOT_FAILED', 'no space')),
      /no space/,
      21,
    ],
    ['not answering', () => source.killNbd(), /vda|socket|connect/, 21],
  ]
  for (const [what, arrange, reason, exit] of CASES) {
    Object.assign(source.handlers, usual)
    await writeFile(source.file('vda'), clone.newer)
    await source.serveNbd()
    await arrange()
    const verified = await verifyOf(clone, undefined, 'repair')
    t.match(verified, { sound: false, repaired: { lost: [{ chunk: 1, reason }] } }, what)
    t.equal(exitOf([verified]), exit, what)
    t.match(damageIn(clone.second), /chunk 1/, what)
    t.equal(currentOf(clone), clone.first.recoveryPoint, what)
  }
  Object.assign(source.handlers, usual)
  await source.serveNbd()
  t.match(await pullOf(clone.config), { seq: 3 }, 'the next pull heals')
  t.match(await verifyOf(clone), { sound: true })
})

t.test('a merge that fails after a repair is exit 13, although the generation is good', async t => {
  const clone = await aClone(t)
  await flip(imageOf(clone.second), CHUNK_SIZE)
  clone.source.handlers.outcome = () => ({
    state: 'failed',
    code: 'MERGE_FAILED',
    reason: 'no space for it',
    disks: [],
    refusals: [],
  })
  const verified = await verifyOf(clone, undefined, 'repair')
  t.match(verified, { sound: true, repaired: { fetched: 1, failure: { code: 'MERGE_FAILED' } } })
  t.equal(exitOf([verified]), 13)
  t.equal(damageIn(clone.second), '')
})

t.test('manifests and images are made anew only when they are what they were', async t => {
  const clone = await aClone(t, 'in-place')
  const record = recordOf(clone)
  const [older, newer] = [clone.first, clone.second].map(({ dir }) =>
    path.join(dir, 'vda.manifest'),
  ) as [string, string]
  const digestOf = (file: string): string =>
    createHash('sha256').update(readFileSync(file)).digest('hex')
  const before = [older, newer].map(digestOf)
  await flip(older, 65 + 3)
  await flip(newer, 3)
  const verified = await verifyAll(clone.config, never, NOBODY, 'repair')
  t.match(verified, [{ sound: true }, { sound: true }])
  t.strictSame([older, newer].map(digestOf), before)
  t.strictSame(clone.source.calls, [], 'without a session')

  await flip(newer, 3)
  await flip(imageOf(clone.second), 3 * CHUNK_SIZE)
  const both = await verifyOf(clone, undefined, 'repair')
  t.match(both, {
    sound: false,
    disks: [{ manifest: /not the manifest that generation.json/ }],
    repaired: { fetched: 0, lost: [{ chunk: 0, reason: /manifest/ }, { chunk: 3 }] },
  })
  t.not(digestOf(newer), before[1], 'bytes that are not sound make no manifest')
  await flip(imageOf(clone.second), 3 * CHUNK_SIZE)
  t.match(await verifyOf(clone, undefined, 'repair'), { sound: true })

  await copyFile(older, newer)
  const swapped = await verifyOf(clone, undefined, 'repair')
  t.match(swapped, { sound: true, repaired: { files: [newer], local: 0, fetched: 0 } })
  t.ok(readFileSync(imageOf(clone.second)).equals(clone.newer), 'no older bytes were taken')

  await rm(imageOf(clone.second))
  t.match(await verifyOf(clone, '1'), { sound: false, disks: [{ image: /there is no/ }] })
  const anew = await verifyOf(clone, '2', 'repair')
  t.match(anew, { sound: true, repaired: { fetched: 3, lost: [], healed: [] } })
  t.ok(readFileSync(imageOf(clone.second)).equals(clone.newer))
  t.match(await verifyOf(clone, '1'), { sound: true })
  t.ok(existsSync(record))
})

t.test('a clone that is in use or has been failed over is not repaired', async t => {
  const clone = await aClone(t)
  await flip(imageOf(clone.second), 0)
  const claims = path.join(clone.second.dir, 'claims')
  await mkdir(claims)
  await writeFile(path.join(claims, 'failover'), '')
  await t.rejects(verifyOf(clone, undefined, 'repair'), { code: 'UNSAFE', message: /failover/ })
  await rm(claims, { recursive: true })
  const handle = await open(imageOf(clone.second), 'r+')
  const writer = spawn('sleep', ['100'], { stdio: [handle.fd, 'ignore', 'ignore'] })
  await handle.close()
  await t.rejects(verifyOf(clone, undefined, 'repair'), { code: 'UNSAFE', message: /sleep/ })
  writer.kill('SIGKILL')
  await once(writer, 'exit')
  t.match(await verifyOf(clone, undefined, 'repair'), { sound: true })
})

t.test('a full read-back is due when none was for so long', async t => {
  const clone = await aClone(t)
  const DAY = 86_400_000
  const layout = layoutOf(clone.config.dir)
  const sound = await soundGenerations(layout.dir)
  const [, newest] = sound
  if (!newest) throw new Error('no generation')
  const dueIn = async (days: number, reverifyMs: number | undefined): Promise<boolean> =>
    (await reverifyDue({ reverifyMs }, layout, Date.now() + days * DAY)).due
  t.strictSame(await Promise.all([dueIn(6, 7 * DAY), dueIn(8, 7 * DAY), dueIn(8, undefined)]), [
    false,
    true,
    false,
  ])
  t.equal(await dueIn(-2, 7 * DAY), true, 'a time to come proves nothing')
  await recordFullRead(layout, newest, new Date(Date.now() + 5 * DAY))
  await rm(path.join(newest.dir, 'verified.json'))
  t.equal(await dueIn(8, 7 * DAY), false, 'the record outlives its generation')

  const how = { whole: false, signal: never, log, watcher: NOBODY }
  const config = { ...clone.config, reverifyMs: 1 }
  await rm(path.join(layout.dir, 'verified.json'))
  await sleep(5)
  t.type(await reverifyIfDue(config, layout, newest.id, how), 'number')
  t.ok((await verifiedOf(newest)).fullAt)
  t.equal(await reverifyIfDue(clone.config, layout, newest.id, how), undefined, 'not due')
  await flip(imageOf(clone.second), 0)
  await t.rejects(reverifyIfDue(config, layout, newest.id, how), {
    code: 'INTEGRITY',
    message: /was published, but .* damage: vda: 1 bad chunks, the first is chunk 0/,
  })
  t.match(damageIn(clone.second), /chunk 0/)
  t.equal(currentOf(clone), clone.first.recoveryPoint)
  t.equal(CHUNKS, Math.ceil(clone.newer.length / CHUNK_SIZE))
})

for (const method of ['reflink', 'in-place'] as const)
  t.test(`a pull reads all back when that is due, and tells: ${method}`, async t => {
    const clone = await aClone(t, method)
    const config = { ...clone.config, reverifyMs: 1 }
    const reverified = async (): Promise<unknown> => {
      const text = readFileSync(layoutOf(config.dir).history, 'utf8')
      const newest = (await soundGenerations(config.dir)).at(-1)
      const line = JSON.parse(text.trim().split('\n').at(-1) ?? '') as { seconds: object }
      return { seconds: line.seconds, verified: newest && (await verifiedOf(newest)) }
    }
    await pullOf(clone.config)
    t.notMatch(await reverified(), { seconds: { reverify: Number } }, 'not due')
    const third = await pullOf(config)
    t.match(await reverified(), { seconds: { reverify: Number }, verified: { fullAt: String } })

    // Bytes that no later pull has to touch, because the source has them as they were.
    await flip(imageOf(third), 7)
    await t.rejects(pullOf(config), {
      code: 'INTEGRITY',
      exit: 21,
      message: /was published, but .* damage: vda: 1 bad chunks, the first is chunk 0/,
    })
    const damaged = (await soundGenerations(config.dir)).at(-1)
    t.match(damaged, { generation: { seq: 5 }, damaged: /chunk 0/ })
    t.not(currentOf(clone), damaged?.id)
  })
