// What a pull builds the next generation upon: the newest one, and what an interrupted pull has left. On real XFS.

import t, { type Test } from 'tap'
import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { open, readdir, readFile, stat, statfs, truncate, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { pino } from 'pino'
import { NOBODY, type Watcher } from '../client/attempt.ts'
import { cloneConfig, loadConfig, type CloneConfig } from '../client/config/effective.ts'
import { pull } from '../client/pull.ts'
import type { Pulled } from '../client/pulled.ts'
import { layoutOf } from '../client/store/layout.ts'
import { Failure } from '../shared/failures.ts'
import { fakeSource, type FakeSource } from './client/fake-source.ts'
import { aMedium, type FileSystem } from './client/medium.ts'

const MIB = 1024 * 1024
const log = pino({ level: 'silent' })
const never = new AbortController().signal

interface Standby {
  readonly source: FakeSource
  readonly clone: CloneConfig
  pull(options?: { signal?: AbortSignal; full?: boolean; watcher?: Watcher }): Promise<Pulled>
  /** The image that `current` shows. */
  image(target?: string): string
}

async function aStandby(
  t: Test,
  disks: Record<string, Buffer>,
  { fs = 'xfs', ...settings }: Partial<CloneConfig> & { fs?: FileSystem } = {},
): Promise<Standby> {
  const source = await fakeSource(disks)
  t.teardown(() => source[Symbol.asyncDispose]())
  const dir = path.join(await aMedium(t, fs), 'mydomain')
  const clone = { ...cloneConfig(loadConfig(source.configFile), 'mydomain'), dir }
  const how: CloneConfig = { ...clone, generations: 'auto', ...settings }
  return {
    source,
    clone: how,
    pull: ({ signal = never, full = false, watcher = NOBODY } = {}) =>
      pull(how, { adopt: false, full, signal, log, watcher }),
    image: (target = 'vda') => path.join(dir, 'current', `${target}.raw`),
  }
}

/** Overwrites bytes of a file. */
async function poke(file: string, offset: number, bytes: Buffer): Promise<void> {
  const handle = await open(file, 'r+')
  await handle.write(bytes, 0, bytes.length, offset)
  await handle.close()
}

const same = (t: Test, standby: Standby, target = 'vda'): void => {
  const { source } = standby
  t.ok(
    readFileSync(standby.image(target)).equals(readFileSync(source.file(target))),
    'bytes are equal',
  )
}

t.test('a later pull reads and writes the chunks that differ, and shares all others', async t => {
  const standby = await aStandby(t, { vda: randomBytes(64 * MIB) })
  const first = await standby.pull()
  t.match(first.plan, [{ kind: 'full', reason: 'first pull' }])
  await poke(standby.source.file('vda'), 5 * MIB + 77, Buffer.from('changed'))
  const used = async () => {
    execFileSync('sync', ['-f', standby.clone.dir])
    const { blocks, bfree, bsize } = await statfs(standby.clone.dir)
    return (blocks - bfree) * bsize
  }
  const before = await used()
  const second = await standby.pull()
  t.match(second, {
    plan: [
      { kind: 'hash', reason: `compared with ${first.recoveryPoint}`, basis: first.recoveryPoint },
    ],
    bytes: { read: MIB, written: MIB, changed: MIB, hashed: 64 * MIB, reused: 0 },
  })
  t.ok((await used()) - before < 4 * MIB, 'the others are shared')
  same(t, standby)
  const { verified } = JSON.parse(
    await readFile(path.join(second.dir, 'generation.json'), 'utf8'),
  ) as { verified: unknown }
  t.match(verified, { level: 'changed' })
})

t.test(
  'in place, a later pull patches the image, and the older generation is a record',
  async t => {
    const standby = await aStandby(t, { vda: randomBytes(16 * MIB) }, { fs: 'ext4' })
    const first = await standby.pull()
    await poke(standby.source.file('vda'), 5 * MIB + 77, Buffer.from('changed'))
    const second = await standby.pull()
    t.match(second, { plan: [{ kind: 'hash' }], bytes: { read: MIB, written: MIB } })
    same(t, standby)
    t.strictSame(
      (await readdir(first.dir)).filter(name => name.startsWith('vda.raw')),
      [`vda.raw.from-${second.recoveryPoint}`],
    )
    t.strictSame(await readdir(layoutOf(standby.clone.dir).staging), [])
    // What the image has lost unseen is mended, when everything is written anew.
    await poke(standby.image(), 9 * MIB, Buffer.from('rotten, and nobody has noticed'))
    await standby.pull({ full: true })
    same(t, standby)
  },
)

t.test('what was zeroed is zero, and given back to the file system', async t => {
  const standby = await aStandby(t, { vda: randomBytes(8 * MIB) })
  await standby.pull()
  const blocks = async () => (await stat(standby.image())).blocks * 512
  const before = await blocks()
  await poke(standby.source.file('vda'), 2 * MIB, Buffer.alloc(3 * MIB))
  await poke(standby.source.file('vda'), 6 * MIB + 128 * 1024, Buffer.alloc(256 * 1024))
  t.match(await standby.pull(), { bytes: { written: 768 * 1024, changed: 4 * MIB } })
  same(t, standby)
  t.equal(before - (await blocks()), 3 * MIB + 256 * 1024)
})

for (const [what, size] of [
  ['grew', 9 * MIB + 512],
  ['shrank', 5 * MIB + 512],
] as const)
  t.test(`a disk that ${what} is compared as far as it goes`, async t => {
    const standby = await aStandby(t, { vda: randomBytes(7 * MIB + 1024) })
    const { recoveryPoint } = await standby.pull()
    await truncate(standby.source.file('vda'), size)
    const { plan, bytes } = await standby.pull()
    t.match(plan, [
      {
        kind: 'hash',
        reason: `compared with ${recoveryPoint}, where its size was ${7 * MIB + 1024} bytes`,
      },
    ])
    t.equal(bytes.read, what === 'grew' ? MIB : 512)
    same(t, standby)
  })

t.test('a source without digests is read in full, and only what differs is written', async t => {
  const standby = await aStandby(t, { vda: randomBytes(4 * MIB) })
  const { handlers } = standby.source
  const { hello } = handlers
  handlers.hello = async params => {
    const { features, ...rest } = await hello(params)
    return rest
  }
  await standby.pull()
  await poke(standby.source.file('vda'), 0, Buffer.from('changed'))
  t.match(await standby.pull(), {
    plan: [{ kind: 'full', reason: 'the source is too old to give digests' }],
    bytes: { read: 4 * MIB, written: MIB },
  })
  same(t, standby)
  const { clone } = standby
  await t.rejects(
    pull(
      { ...clone, verify: 'source' },
      { adopt: false, full: false, signal: never, log, watcher: NOBODY },
    ),
    { code: 'SOURCE_REFUSED', message: /too old to give digests/ },
  )
})

t.test('a source that lies about a digest is caught, whatever it sends', async t => {
  const standby = await aStandby(t, { vda: randomBytes(3 * MIB) }, { verify: 'source' })
  const { handlers } = standby.source
  const { digests } = handlers
  handlers.digests = async params => {
    const answer = await digests(params)
    return { digests: answer.digests.map((one, at) => (at === 1 ? 'a'.repeat(64) : one)) }
  }
  await t.rejects(standby.pull(), {
    code: 'INTEGRITY',
    message: /disk vda: chunk 1 \(byte 1048576\)/,
  })
  t.strictSame(await readdir(layoutOf(standby.clone.dir).staging), [], 'nothing of it is kept')
  handlers.digests = digests
  const { dir } = await standby.pull()
  t.match(JSON.parse(await readFile(path.join(dir, 'generation.json'), 'utf8')), {
    verified: { level: 'source' },
  })
})

for (const fs of ['xfs', 'ext4'] as const)
  t.test(
    `an interrupted pull is gone on with, chunk by chunk, from what is right of it: ${fs}`,
    async t => {
      const standby = await aStandby(t, { vda: randomBytes(48 * MIB) }, { fs })
      const { source, clone } = standby
      const aborted = new AbortController()
      let copied = 0
      const watcher: Watcher = {
        ...NOBODY,
        progress: bytes => {
          copied += bytes
          if (copied >= 40 * MIB) aborted.abort(new Failure('INTERRUPTED', 'by SIGINT'))
        },
      }
      await t.rejects(standby.pull({ signal: aborted.signal, watcher }), { code: 'INTERRUPTED' })
      // nbdkit may end when a client leaves it in the middle of a reply.
      await standby.source.serveNbd()
      const { staging, generations } = layoutOf(clone.dir)
      t.strictSame(await readdir(generations), [], 'nothing is published')
      const [donor = ''] = await readdir(staging)
      const file = path.join(staging, donor, 'vda.raw')
      await poke(file, 3 * MIB, Buffer.from('rotten'))
      await poke(source.file('vda'), 7 * MIB, Buffer.from('changed since'))
      const { plan, bytes } = await standby.pull()
      t.match(plan, [{ kind: 'hash', reason: `first pull; ${donor} was interrupted` }])
      t.equal(bytes.read + bytes.reused, 48 * MIB)
      t.ok(bytes.reused >= 30 * MIB, `${bytes.reused} bytes were taken from it`)
      t.ok(bytes.read >= 2 * MIB, 'but not what is rotten, or was changed')
      same(t, standby)
      t.strictSame(await readdir(staging), [], 'it is gone')
    },
  )

t.test('of two interrupted pulls the one that got further is kept', async t => {
  const standby = await aStandby(t, { vda: randomBytes(48 * MIB) })
  const { staging } = layoutOf(standby.clone.dir)
  const interrupted = async (after: number): Promise<string[]> => {
    const aborted = new AbortController()
    let copied = 0
    const watcher: Watcher = {
      ...NOBODY,
      progress: bytes => {
        copied += bytes
        if (copied >= after) aborted.abort(new Failure('INTERRUPTED', 'by SIGINT'))
      },
    }
    await t.rejects(standby.pull({ signal: aborted.signal, watcher }), { code: 'INTERRUPTED' })
    // nbdkit may end when a client leaves it in the middle of a reply.
    await standby.source.serveNbd()
    return readdir(staging)
  }
  const far = await interrupted(40 * MIB)
  t.strictSame(await interrupted(1), far)
})

t.test(
  'a full pull that is to be verified by the source compares every chunk with its digest',
  async t => {
    const standby = await aStandby(t, { vda: randomBytes(2 * MIB) }, { verify: 'source' })
    await standby.pull()
    t.match(await standby.pull({ full: true }), {
      plan: [{ kind: 'hash', reason: '--full was given; verify: source' }],
      bytes: { read: 2 * MIB, written: 2 * MIB, hashed: 2 * MIB },
    })
    same(t, standby)
    standby.source.handlers.digests = () => ({ digests: ['0'.repeat(64), '1'.repeat(64)] })
    await t.rejects(standby.pull({ full: true }), { code: 'INTEGRITY' })
  },
)

t.test('a basis whose manifest was swapped, or whose image was cut, is written anew', async t => {
  const standby = await aStandby(t, { vda: randomBytes(3 * MIB) })
  const first = await standby.pull()
  await poke(standby.source.file('vda'), 0, Buffer.from('changed'))
  const second = await standby.pull()
  await poke(standby.source.file('vda'), 0, Buffer.from('and back'))
  // The older manifest tells of the source's bytes, but not of those in the newer image.
  const stale = await readFile(path.join(first.dir, 'vda.manifest'))
  await writeFile(path.join(second.dir, 'vda.manifest'), stale)
  t.match(await standby.pull(), {
    plan: [{ kind: 'full', reason: /damage is known that may be in/ }],
    bytes: { written: 3 * MIB },
  })
  same(t, standby)
  await truncate(standby.image(), 2 * MIB)
  t.match(await standby.pull(), { bytes: { written: 3 * MIB } })
  same(t, standby)
})

t.test('a full pull distrusts what the clone has', async t => {
  const standby = await aStandby(t, { vda: randomBytes(2 * MIB) })
  await standby.pull()
  await poke(standby.image(), 100, Buffer.from('rotten, and nobody has noticed'))
  t.match(await standby.pull({ full: true }), {
    plan: [{ kind: 'full', reason: '--full was given' }],
    bytes: { read: 2 * MIB, written: 2 * MIB },
  })
  await writeFile(standby.source.file('vda'), randomBytes(2 * MIB))
  await standby.pull({ full: true })
  same(t, standby)
})
