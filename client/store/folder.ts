// A folder that is there complete or not at all: filled beside under FOLDER.part, then renamed.

import { mkdir, readdir, realpath, rename, rm, stat } from 'node:fs/promises'
import path from 'node:path'
import type { Cleanup } from '../../shared/cleanup.ts'
import { Failure } from '../../shared/failures.ts'
import { fsyncPath } from '../../shared/host/durable.ts'
import { tryLock } from '../../shared/host/lock.ts'
import { storeFailure } from '../copy/image.ts'

export interface NewFolder {
  /** Where it is filled. */
  readonly part: string
  /** fsyncs its names and gives it its own: now it exists. */
  commit(): Promise<void>
}

const LOCK = '.nbd-clone'

/**
 * Makes FOLDER.part and locks it; `cleanup` removes it unless it was committed. What a killed run left in there is removed, and
 * known as ours by its lock file.
 * @param folder absolute; must not exist or be empty. @param not a folder that must not get it
 * @throws Failure USAGE, UNSAFE, LOCKED, STANDBY_IO
 */
export async function newFolder(folder: string, not: string, cleanup: Cleanup): Promise<NewFolder> {
  const parent = path.dirname(folder)
  const part = `${folder}.part`
  try {
    await checkPlace(folder, parent, not)
    await mkdir(part, { mode: 0o700 }).catch(async (error: unknown) => {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
      const names = await readdir(part)
      if (names.length > 0 && !names.includes(LOCK))
        throw new Failure('UNSAFE', `${part} is needed, but it exists and is not ours`, {
          cause: error,
          remedy: 'move it away, or choose another folder',
        })
    })
    const lock = tryLock(path.join(part, LOCK), `process ${process.pid}`)
    if (typeof lock !== 'function')
      throw new Failure('LOCKED', `${part} is being filled by ${lock.heldBy}`)
    cleanup.defer(lock)
  } catch (error) {
    throw storeFailure(part, error)
  }
  const forget = cleanup.defer(() => rm(part, { recursive: true, force: true }))
  for (const name of await readdir(part))
    if (name !== LOCK) await rm(path.join(part, name), { recursive: true })
  return {
    part,
    async commit() {
      try {
        await rm(path.join(part, LOCK))
        await fsyncPath(part)
        await rename(part, folder)
        forget()
        await fsyncPath(parent)
      } catch (error) {
        throw storeFailure(folder, error)
      }
    },
  }
}

async function checkPlace(folder: string, parent: string, not: string): Promise<void> {
  const above = await stat(parent).catch((error: unknown) => {
    throw storeFailure(parent, error)
  })
  const inside = path.relative(await realpath(not), path.join(await realpath(parent), '.'))
  if (!inside.startsWith('..'))
    throw new Failure('USAGE', `${folder} lies in the clone ${not}, which is for generations only`)
  const there = await stat(folder).catch(() => undefined)
  if (!there) return
  if (!there.isDirectory() || (await readdir(folder)).length > 0)
    throw new Failure('USAGE', `${folder} exists and is not an empty folder`, {
      remedy: 'name one that does not exist yet',
    })
  // Renamed over: that needs the same file system, and no mount.
  if (there.dev !== above.dev)
    throw new Failure('USAGE', `${folder} is where a file system is mounted`, {
      remedy: `name a folder in it: ${path.join(folder, 'mydomain')}`,
    })
}
