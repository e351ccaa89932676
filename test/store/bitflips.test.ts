// A bit that flips, wherever it does: what is current stays complete and is what its manifest says, and the next pull heals.

import t, { type Test } from 'tap'
import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { existsSync, readFileSync, readlinkSync } from 'node:fs'
import { open, readdir, truncate, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { pino } from 'pino'
import { NOBODY, type Watcher } from '../../client/attempt.ts'
import { verifyAll, verifyCommand } from '../../client/commands/verify.ts'
import { cloneConfig, loadConfig, type CloneConfig } from '../../client/config/effective.ts'
import { CHUNK_SIZE } from '../../client/plan.ts'
import { pull } from '../../client/pull.ts'
import type { Pulled } from '../../client/pulled.ts'
import type { Method } from '../../client/store/method.ts'
import { soundGenerations, type Sound } from '../../client/store/generation.ts'
import { viewOf } from '../../client/store/view.ts'
import { Failure } from '../../shared/failures.ts'
import { GATE } from '../../shared/gate.ts'
import { fakeSource, type FakeSource } from '../client/fake-source.ts'
import { aMedium, type FileSystem } from '../client/medium.ts'

const log = pino({ level: 'silent' })
const never = new AbortController().signal

const METHODS: [method: Method, on: FileSystem][] = [
  ['reflink', 'xfs'],
  ['in-place', 'ext4'],
  ['copy', 'ext4'],
]

interface Clone {
  readonly source: FakeSource
  readonly config: CloneConfig
}

async function aClone(
  t: Test,
  method: Method,
  on: FileSystem,
  disks: Readonly<Record<string, Buffer>>,
  settings: object = {},
): Promise<Clone> {
  const source = await fakeSource(disks)
  t.teardown(() => source[Symbol.asyncDispose]())
  const config = cloneConfig(loadConfig(source.configFile), 'mydomain')
  const dir = path.join(await aMedium(t, on), 'mydomain')
  const chosen = { ...config, dir, generations: method, ...settings }
  return { source, config: chosen }
}

function pullOf({ config }: Clone, watcher: Watcher = NOBODY): Promise<Pulled> {
  const options = { adopt: false, full: false, signal: never, log, watcher }
  return pull(config, options)
}

const currentOf = ({ config }: Clone): string | undefined => {
  const link = path.join(config.dir, 'current')
  return existsSync(link) ? path.basename(readlinkSync(link)) : undefined
}

/** A generation's disk as its bytes are, wherever they lie. */
async function contentOf(
  generations: readonly Sound[],
  found: Sound,
  target = 'vda',
): Promise<Buffer> {
  const disk = found.generation.disks.find(one => one.target === target)
  if (!disk) throw new Error(`no disk ${target}`)
  await using view = await viewOf(generations, found, disk)
  const parts: Buffer[] = []
  for (const { file, chunk, count } of view.runs(0, Math.ceil(disk.size / CHUNK_SIZE))) {
    const end = Math.min((chunk + count) * CHUNK_SIZE, disk.size)
    parts.push(readFileSync(file).subarray(chunk * CHUNK_SIZE, end))
  }
  return Buffer.concat(parts)
}

/** What must hold after every pull, good or bad: `current` is complete, and its bytes match its manifest. */
async function checkCurrent(t: Test, clone: Clone, expected: string | undefined): Promise<void> {
  t.equal(currentOf(clone), expected, 'current')
  if (expected === undefined) return
  const dir = path.join(clone.config.dir, 'current')
  execFileSync(
    'sh',
    ['-c', "split -b 1M --filter='sha256sum | cut -c1-64' vda.raw | cmp - vda.manifest"],
    { cwd: dir },
  )
}

/** Pulls, and compares newest and older generation byte by byte with what the source had at either time. */
async function pullExactly(t: Test, clone: Clone, older?: Buffer): Promise<Pulled> {
  const pulled = await pullOf(clone)
  const generations = await soundGenerations(clone.config.dir)
  const [newest, before] = [generations.at(-1), generations.at(-2)]
  if (!newest) throw new Error('nothing was published')
  const wanted = readFileSync(clone.source.file('vda'))
  const got = await contentOf(generations, newest)
  t.equal(got.length, wanted.length, 'length')
  t.ok(got.equals(wanted), 'the newest generation is the source')
  if (older && before)
    t.ok((await contentOf(generations, before)).equals(older), 'and the older one what it was')
  await checkCurrent(t, clone, pulled.recoveryPoint)
  return pulled
}

async function change(clone: Clone, work: (content: Buffer) => Buffer): Promise<Buffer> {
  const before = readFileSync(clone.source.file('vda'))
  const after = Buffer.from(before)
  await writeFile(clone.source.file('vda'), work(after))
  return before
}

/** Flips a bit of the first staged image as soon as the pull goes on to read it back. */
function flipping(config: CloneConfig, byte: number): Watcher {
  return {
    ...NOBODY,
    phase: name => {
      if (name !== 'verify') return
      const staging = path.join(config.dir, 'staging')
      execFileSync('sh', [
        '-c',
        `for f in "$1"/*/vda.raw*; do b=$(dd if="$f" bs=1 skip=$2 count=1 status=none | od -An -tu1); ` +
          `printf "\\\\$(printf %o $((b ^ 1)))" | dd of="$f" bs=1 seek=$2 conv=notrunc,fsync status=none; done`,
        'sh',
        staging,
        String(byte),
      ])
    },
  }
}

for (const [method, on] of METHODS)
  t.test(`bit flips: ${method} on ${on}`, async t => {
    const clone = await aClone(t, method, on, { vda: randomBytes(2 * CHUNK_SIZE) })
    const first = await pullExactly(t, clone)
    const before = await change(clone, bytes => bytes.fill(3, 0, CHUNK_SIZE))

    await t.test('in staging, between write and read-back', async t => {
      await t.rejects(pullOf(clone, flipping(clone.config, 4096)), { code: 'INTEGRITY', exit: 21 })
      await checkCurrent(t, clone, first.recoveryPoint)
      const generations = await soundGenerations(clone.config.dir)
      t.equal(generations.length, 1)
      await pullExactly(t, clone, before)
    })
    if (method === 'reflink')
      await t.test('in every file of a published generation', async t => {
        const newest = (await soundGenerations(clone.config.dir)).at(-1)
        if (!newest) throw new Error('nothing was published')
        const flips = ['vda.raw', 'vda.manifest', 'generation.json']
        for (const name of flips) {
          const file = path.join(newest.dir, name)
          const good = readFileSync(file)
          const bad = Buffer.from(good)
          const at = name === 'generation.json' ? bad.indexOf('"digest": "') + 12 : 100
          bad[at] = (bad[at] ?? 0) ^ 1
          await writeFile(file, bad)
          const verified = await verifyAll(clone.config, never, NOBODY).catch(
            (error: unknown) => error,
          )
          t.notOk(verified instanceof Failure, name)
          const last = (verified as Awaited<ReturnType<typeof verifyAll>>).at(-1)
          t.match(last, { id: newest.id, sound: false }, name)
          t.not(currentOf(clone), newest.id, `${name}: current is off it`)
          await writeFile(file, good)
          t.match((await verifyAll(clone.config, never, NOBODY)).at(-1), { sound: true }, name)
          await checkCurrent(t, clone, newest.id)
        }
      })
    if (method === 'in-place')
      await t.test('in a record', async t => {
        const [older, newest] = (await soundGenerations(clone.config.dir)).slice(-2)
        if (!older || !newest) throw new Error('nothing was published')
        const record = (await readdir(older.dir)).find(name => name.includes('.from-'))
        if (record === undefined) {
          t.pass('this way of keeping generations has none')
          return
        }
        const file = path.join(older.dir, record)
        const handle = await open(file, 'r+')
        const byte = Buffer.alloc(1)
        await handle.read(byte, 0, 1, 10)
        byte[0] = (byte[0] ?? 0) ^ 1
        await handle.write(byte, 0, 1, 10)
        await handle.close()
        const which = String(older.generation.seq)
        const verified = await verifyCommand(clone.config, which, never, NOBODY)
        t.match(verified, { sound: false, disks: [{ bad: [{ chunk: 0, byte: 0, file }] }] })
        await checkCurrent(t, clone, newest.id)
        await pullOf(clone)
      })
    if (method === 'reflink')
      await t.test('an image cut short', async t => {
        const newest = (await soundGenerations(clone.config.dir)).at(-1)
        if (!newest) throw new Error('nothing was published')
        await truncate(path.join(newest.dir, 'vda.raw'), CHUNK_SIZE + 5)
        const verified = await verifyCommand(clone.config, undefined, never, NOBODY)
        t.match(verified, { disks: [{ image: /1048581 bytes/, bad: [{ chunk: 1 }] }] })
        t.match(await verifyCommand(clone.config, undefined, never, NOBODY, 'repair'), {
          sound: true,
        })
        await checkCurrent(t, clone, newest.id)
      })
  })

// Without digests in the gate's words no pull can know.
if ('digests' in GATE)
  t.test('a bit flips on the wire, and the source says what it had to be', async t => {
    const bytes = randomBytes(2 * CHUNK_SIZE)
    const clone = await aClone(t, 'reflink', 'xfs', { vda: bytes }, { verify: 'source' })
    const first = await pullExactly(t, clone)
    const flipped = await change(clone, content => content.fill(3, 0, CHUNK_SIZE))
    readFileSync(clone.source.file('vda')).copy(flipped)
    flipped[777] = 2
    await writeFile(clone.source.file('flipped'), flipped)
    await clone.source.serveNbd([], 'echo flipped; exit 0;')
    await t.rejects(pullOf(clone), { code: 'INTEGRITY', exit: 21 })
    await checkCurrent(t, clone, first.recoveryPoint)
    await clone.source.serveNbd()
    await pullExactly(t, clone, bytes)
  })
