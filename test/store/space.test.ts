// What a clone takes, and how it can be checked, with nothing but the tools that every host has: df, and coreutils.

import t from 'tap'
import { execa } from 'execa'
import { randomBytes } from 'node:crypto'
import { copyFile, mkdir, open, readFile, statfs, truncate } from 'node:fs/promises'
import path from 'node:path'
import { aDevice, aMedium } from '../client/medium.ts'
import { ROOT } from '../lab/names.ts'
import { altered, changingSource, type Disks } from './changing-source.ts'
import { aStandby } from './standby.ts'

const MIB = 1024 * 1024
const raw = (content: Buffer): Disks => ({ vda: { format: 'raw', content } })

/** Bytes taken on a file system, once everything is where it stays. */
async function taken(folder: string): Promise<number> {
  await execa('sync', ['--file-system', folder])
  const { blocks, bfree, bsize } = await statfs(folder)
  return (blocks - bfree) * bsize
}

t.test(
  'on XFS, a later pull with 1 % of the chunks changed takes at most twice these and 16 MiB',
  async t => {
    await using source = await changingSource(['vda'])
    const mounted = await aMedium(t, 'xfs', 700)
    const standby = await aStandby(source, path.join(mounted, 'store'))
    const disks = raw(randomBytes(200 * MIB))
    await source.become(disks)
    t.match(await standby.clone('pull'), { code: 0 })
    const before = await taken(mounted)
    await source.become(altered(disks, 'vda', 17, 150))
    t.match(await standby.clone('pull'), { code: 0 })
    const grown = (await taken(mounted)) - before
    t.ok(grown <= 2 * 2 * MIB + 16 * MIB, `it grows by ${(grown / MIB).toFixed(1)} MiB`)
  },
)

/** The documented line that checks a disk. @param which a word that only this one has */
async function documented(which: string): Promise<string> {
  const text = await readFile(path.join(ROOT, 'docs', 'reference', 'clone.md'), 'utf8')
  const line = text.split('\n').find(one => one.includes('sha256sum') && one.startsWith(which))
  if (line === undefined) throw new Error(`the manual has no line that begins with ${which}`)
  return line
}

const checks = async (folder: string, script: string): Promise<number | undefined> =>
  (await execa('sh', ['-c', script], { cwd: folder, reject: false })).exitCode

async function flip(file: string, at: number): Promise<void> {
  await using handle = await open(file, 'r+')
  const byte = Buffer.alloc(1)
  await handle.read(byte, 0, 1, at)
  await handle.write(Buffer.from([byte.readUInt8() ^ 1]), 0, 1, at)
}

t.test('the documented line checks a disk of any kind and size with coreutils alone', async t => {
  await using source = await changingSource(['vda', 'vdb', 'vdc'])
  const store = path.join(source.fake.dir, 'clones')
  await mkdir(store)
  const standby = await aStandby(source, store)
  const odd = Buffer.concat([randomBytes(MIB), Buffer.alloc(2 * MIB), randomBytes(3 * 512)])
  await source.become({
    vda: { format: 'raw', content: odd },
    vdb: { format: 'qcow2', content: randomBytes(2 * MIB) },
    vdc: { format: 'raw', content: randomBytes(512) },
  })
  t.match(await standby.clone('pull'), { code: 0 })
  const current = path.join(standby.dir, 'current')
  const line = await documented('split')
  for (const image of ['vda.raw', 'vdb.qcow2', 'vdc.raw']) {
    const mine = line.replace('vda.raw', image).replace('vda.', `${image.slice(0, 3)}.`)
    t.equal(await checks(current, mine), 0, image)
    await flip(path.join(current, image), 300)
    t.not(await checks(current, mine), 0, `${image}, one bit flipped`)
    await flip(path.join(current, image), 300)
    t.equal(await checks(current, mine), 0, `${image}, flipped back`)
  }
  const last = path.join(current, 'vda.raw')
  await truncate(last, odd.length - 512)
  t.not(await checks(current, line), 0, 'an image that lost its end')
  await truncate(last, odd.length)
  t.not(await checks(current, line), 0, 'an image whose end is zero')

  const device = await aDevice(t, 16 * MIB)
  await execa('dd', ['of=' + device, 'conv=fsync', 'status=none'], { input: odd })
  const folder = path.join(store, 'on-device')
  await mkdir(folder)
  await copyFile(path.join(current, 'vda.manifest'), path.join(folder, 'vda.manifest'))
  await execa('ln', ['-s', device, path.join(folder, 'vda.raw')])
  const bounded = (await documented('head')).replace(/-c \S+/, `-c ${odd.length}`)
  t.equal(await checks(folder, bounded), 0, 'a device that is bigger than its disk')
  await flip(device, odd.length - 1)
  t.not(await checks(folder, bounded), 0, 'its last byte is another')
})
