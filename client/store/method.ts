// How a clone keeps its generations: sharing blocks, as whole copies, or in place under an undo journal.

import { constants } from 'node:fs'
import { copyFile, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { Failure } from '../../shared/failures.ts'
import type { Layout } from './layout.ts'

/**
 * `reflink`: each generation is whole and shares unchanged blocks with the others (XFS, btrfs). `copy`: each is whole and
 * shares nothing. `in-place`: the newest is whole, older ones are what it takes to go back.
 */
export type Method = 'reflink' | 'copy' | 'in-place'

/**
 * What a clone's file system allows of what was configured.
 * @throws Failure USAGE when reflink was asked for and the file system has none
 */
export async function methodFor(configured: Method | 'auto', layout: Layout): Promise<Method> {
  if (configured === 'copy' || configured === 'in-place') return configured
  if (await canReflink(layout.staging)) return 'reflink'
  if (configured === 'auto') return 'in-place'
  throw new Failure(
    'USAGE',
    `generations: reflink, but the file system of ${layout.dir} cannot share blocks`,
    {
      remedy: 'use XFS (reflink=1) or btrfs, or set generations: in-place',
    },
  )
}

/** Whether a file in `dir` can be a clone of another (ioctl_ficlone(2)): the file system is asked by doing it. */
async function canReflink(dir: string): Promise<boolean> {
  const [one, other] = ['.probe', '.probe-clone'].map(name => path.join(dir, name)) as [
    string,
    string,
  ]
  try {
    await writeFile(one, 'probe', { mode: 0o600 })
    await copyFile(one, other, constants.COPYFILE_FICLONE_FORCE)
    return true
  } catch (error) {
    const { code = '' } = error as NodeJS.ErrnoException
    if (['EOPNOTSUPP', 'ENOTSUP', 'EINVAL', 'ENOSYS', 'EXDEV', 'ENOTTY'].includes(code))
      return false
    throw error
  } finally {
    await rm(one, { force: true })
    await rm(other, { force: true })
  }
}
