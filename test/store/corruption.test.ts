// How copies of disks went wrong in history, by name: after each pull the clone is the source's bytes, or the pull fails and
// the older generation is untouched. For each way of keeping generations, on the file systems that it is for.

import t, { type Test } from 'tap'
import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { existsSync, readFileSync, readlinkSync } from 'node:fs'
import { copyFile, open, rename, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { pino } from 'pino'
import { NOBODY } from '../../client/attempt.ts'
import { exitOf, verifyAll, verifyCommand } from '../../client/commands/verify.ts'
import { cloneConfig, loadConfig, type CloneConfig } from '../../client/config/effective.ts'
import { CHUNK_SIZE } from '../../client/plan.ts'
import { pull } from '../../client/pull.ts'
import type { Pulled } from '../../client/pulled.ts'
import type { Method } from '../../client/store/method.ts'
import { soundGenerations, type Sound } from '../../client/store/generation.ts'
import { viewOf } from '../../client/store/view.ts'
import { trim } from '../../shared/host/trim.ts'
import { fakeSource, type FakeSource } from '../client/fake-source.ts'
import { aMedium, type FileSystem } from '../client/medium.ts'
import { unreadable } from '../client/unreadable.ts'

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

function pullOf({ config }: Clone, full = false): Promise<Pulled> {
  return pull(config, { adopt: false, full, signal: never, log, watcher: NOBODY })
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

/** What happens to a disk between two pulls, by the name of what once went wrong with it. */
const BETWEEN: [what: string, target: string, change: (before: Buffer) => Buffer][] = [
  ['zeroed old data', 'vda', bytes => bytes.fill(0, CHUNK_SIZE, 2 * CHUNK_SIZE)],
  ['trimmed old data', 'vdb', bytes => bytes.fill(0, 8192, CHUNK_SIZE + 8192)],
  [
    'the last byte of the disk is not zero',
    'vdc',
    bytes => Buffer.concat([bytes.fill(0).subarray(1), Buffer.from([1])]),
  ],
  ['block 0 is good and the rest is zero', 'vdd', bytes => bytes.fill(0, 4096)],
  ['a size that is no multiple of 1 MiB', 'vde', bytes => bytes.subarray(0, CHUNK_SIZE + 8192)],
  [
    'a size that is no multiple of 4 KiB',
    'vdf',
    bytes => Buffer.concat([bytes, bytes.subarray(0, 1536)]),
  ],
  ['a size that is no multiple of 512', 'vdg', bytes => bytes.subarray(0, CHUNK_SIZE + 77)],
]

for (const [method, on] of METHODS)
  t.test(`${method} on ${on}`, async t => {
    const older = Object.fromEntries(
      BETWEEN.map(([, target]) => [target, randomBytes(2 * CHUNK_SIZE)]),
    )
    const clone = await aClone(t, method, on, older)
    await pullOf(clone)
    const newer: Record<string, Buffer> = {}
    for (const [what, target, change] of BETWEEN) {
      newer[target] = change(Buffer.from(older[target] ?? Buffer.alloc(0)))
      await writeFile(clone.source.file(target), newer[target])
      if (what.startsWith('trimmed')) {
        const image = await open(clone.source.file(target), 'r+')
        await trim(image.fd, 8192, CHUNK_SIZE)
        await image.close()
      }
    }
    const { recoveryPoint, dir } = await pullOf(clone)
    const generations = await soundGenerations(clone.config.dir)
    const [before, now] = generations
    if (!before || !now) throw new Error('nothing was published')
    for (const [what, target] of BETWEEN) {
      t.ok(
        (await contentOf(generations, now, target)).equals(newer[target] ?? Buffer.alloc(0)),
        what,
      )
      t.ok(
        (await contentOf(generations, before, target)).equals(older[target] ?? Buffer.alloc(0)),
        `${what}: the older one`,
      )
    }
    await checkCurrent(t, clone, recoveryPoint)
    const blocks = execFileSync('stat', ['-c', '%b', path.join(dir, 'vda.raw')])
    t.ok(Number(blocks) * 512 <= CHUNK_SIZE + 65_536, 'zeros are given back to the file system')

    await t.test('an error on the last read', async t => {
      const bytes = newer['vdg'] ?? Buffer.alloc(0)
      await writeFile(clone.source.file('vdg'), Buffer.from(bytes).fill(7))
      const restore = await unreadable(t, clone.source.file('vdg'), CHUNK_SIZE, 77)
      // Who gives digests reads the disk itself; a full pull meets the error over NBD.
      const full = method === 'copy'
      const message = full ? /NBD/ : /the source cannot read/
      await t.rejects(pullOf(clone, full), { code: 'TRANSFER', exit: 20, message })
      await checkCurrent(t, clone, recoveryPoint)
      const left = await soundGenerations(clone.config.dir)
      t.equal(left.length, 2)
      t.ok(left[1] && (await contentOf(left, left[1], 'vdg')).equals(bytes), 'untouched')
      await restore()
      // nbdkit may have ended with its last connection's errors.
      await clone.source.serveNbd()
      await checkCurrent(t, clone, (await pullOf(clone)).recoveryPoint)
      const all = await soundGenerations(clone.config.dir)
      const newest = all.at(-1)
      t.ok(newest && (await contentOf(all, newest, 'vdg')).equals(Buffer.from(bytes).fill(7)))
    })
  })

t.test('a base or digest that was swapped', async t => {
  const clone = await aClone(t, 'reflink', 'xfs', { vda: randomBytes(2 * CHUNK_SIZE) })
  const first = await pullOf(clone)
  await writeFile(clone.source.file('vda'), randomBytes(2 * CHUNK_SIZE))
  const second = await pullOf(clone)
  /** Puts a file of another generation in, and it back after `look`. */
  const swapped = async (name: string, look: () => Promise<void>): Promise<void> => {
    const file = path.join(second.dir, name)
    await rename(file, `${file}.good`)
    await copyFile(path.join(first.dir, name), file)
    await look()
    await rename(`${file}.good`, file)
    t.match((await verifyAll(clone.config, never, NOBODY)).at(-1), { sound: true }, name)
    await checkCurrent(t, clone, second.recoveryPoint)
  }
  await swapped('vda.manifest', async () => {
    const found = await verifyCommand(clone.config, undefined, never, NOBODY)
    t.match(found, { sound: false, disks: [{ manifest: /not the manifest/ }] })
    t.equal(exitOf([found]), 21)
    await checkCurrent(t, clone, first.recoveryPoint)
  })
  await swapped('vda.raw', async () => {
    const found = await verifyCommand(clone.config, undefined, never, NOBODY)
    t.match(found, { sound: false, disks: [{ bad: [{ chunk: 0 }, { chunk: 1 }] }] })
    await checkCurrent(t, clone, first.recoveryPoint)
  })
  await swapped('generation.json', async () => {
    const all = await verifyAll(clone.config, never, NOBODY)
    t.match(all.at(-1), { id: second.recoveryPoint, sound: false, broken: /it is of/ })
    t.equal(exitOf(all), 21)
  })
})
