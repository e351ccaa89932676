// The media that tests of stores stand on, and the one call on them that Node lacks.

import t, { type Test } from 'tap'
import { randomBytes } from 'node:crypto'
import { copyFileSync, constants } from 'node:fs'
import { open, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { trim } from '../shared/host/trim.ts'
import { aDevice, aMedium } from './client/medium.ts'

const MIB = 1024 * 1024

/** Trims the second of four MiB. @returns bytes taken before and after it */
async function trimmed(t: Test, file: string): Promise<{ before: number; after: number }> {
  const handle = await open(file, 'r+')
  try {
    const before = (await handle.stat()).blocks * 512
    await trim(handle.fd, MIB, MIB)
    const bytes = Buffer.alloc(4 * MIB)
    await handle.read(bytes, 0, bytes.length, 0)
    t.ok(bytes.subarray(MIB, 2 * MIB).equals(Buffer.alloc(MIB)), 'the range is zero')
    t.notOk(bytes.subarray(0, MIB).equals(Buffer.alloc(MIB)), 'the bytes before it are not')
    t.notOk(bytes.subarray(2 * MIB, 3 * MIB).equals(Buffer.alloc(MIB)), 'nor those after it')
    return { before, after: (await handle.stat()).blocks * 512 }
  } finally {
    await handle.close()
  }
}

for (const type of ['xfs', 'ext4'] as const)
  t.test(`a trimmed range of a file is zero and takes no space: ${type}`, async t => {
    const file = path.join(await aMedium(t, type), 'file')
    await writeFile(file, randomBytes(4 * MIB))
    const { before, after } = await trimmed(t, file)
    t.equal(before - after, MIB)
  })

t.test('a trimmed range of a block device is zero', async t => {
  const device = await aDevice(t, 4 * MIB)
  await writeFile(device, randomBytes(4 * MIB))
  await trimmed(t, device)
})

t.test('XFS shares what was cloned, ext4 refuses', async t => {
  const results: string[] = []
  for (const type of ['xfs', 'ext4'] as const) {
    const dir = await aMedium(t, type)
    await writeFile(path.join(dir, 'a'), randomBytes(MIB))
    try {
      copyFileSync(path.join(dir, 'a'), path.join(dir, 'b'), constants.COPYFILE_FICLONE_FORCE)
      results.push(`${type} shares`)
    } catch (error) {
      results.push(`${type} ${String((error as NodeJS.ErrnoException).code)}`)
    }
  }
  t.match(results, ['xfs shares', /^ext4 (EOPNOTSUPP|ENOTSUP|EINVAL|ENOSYS|EXDEV)/])
})
