// Who may read a clone's files: owner, group and mode as configured, set before a generation is published.

import { constants } from 'node:fs'
import { lstat, lchown, open, readdir } from 'node:fs/promises'
import path from 'node:path'
import { Failure } from '../../shared/failures.ts'
import { run } from '../../shared/host/run.ts'
import type { OwnershipSettings } from '../config/effective.ts'
import { storeFailure } from '../copy/image.ts'
import type { Layout } from './layout.ts'

export interface Ownership {
  /** Undefined: whoever runs the command. */
  readonly uid: number | undefined
  readonly gid: number | undefined
  /** Of images, manifests, definitions and generation.json. */
  readonly mode: number
  /** Of generations, and of the folders that lead to them. */
  readonly dirMode: number
}

/** What nobody configured: the guest's secrets are for who runs the command alone. */
export const PRIVATE: Ownership = { uid: undefined, gid: undefined, mode: 0o600, dirMode: 0o700 }

/** Looks the names up on this host. @throws Failure USAGE for one that does not exist */
export async function resolveOwnership(
  { owner, group, mode, dirMode }: OwnershipSettings,
  clone: string,
): Promise<Ownership> {
  return {
    uid: owner === undefined ? undefined : await idOf('passwd', owner, `${clone}: owner`),
    gid: group === undefined ? undefined : await idOf('group', group, `${clone}: group`),
    mode: parseInt(mode, 8),
    dirMode: parseInt(dirMode, 8),
  }
}

async function idOf(database: 'passwd' | 'group', name: string, what: string): Promise<number> {
  if (/^\d+$/.test(name)) return Number(name)
  const found = await run('getent', [database, name])
  const id = /^[^:]*:[^:]*:(\d+)/.exec(found.stdout)?.[1]
  if (found.exitCode === 0 && id !== undefined) return Number(id)
  const why =
    found.exitCode === 2
      ? 'this host has none of that name'
      : `getent ${database} failed (exit status ${String(found.exitCode)})`
  throw new Failure('USAGE', `ownership of ${what} ${name}: ${why}`, {
    remedy: `see: getent ${database}; a number needs no name`,
  })
}

/** Sets it on one file or folder, durably. A symlink to a block device is owned, what it leads to is left alone. @throws Failure STANDBY_IO */
export async function own(file: string, { uid, gid, mode, dirMode }: Ownership): Promise<void> {
  try {
    const found = await lstat(file)
    if (found.isSymbolicLink()) {
      await lchown(file, uid ?? -1, gid ?? -1)
      return
    }
    const handle = await open(file, constants.O_RDONLY | constants.O_NOFOLLOW)
    try {
      // The owner first: a wider mode must never open it to the group it had.
      if (uid !== undefined || gid !== undefined) await handle.chown(uid ?? -1, gid ?? -1)
      await handle.chmod(found.isDirectory() ? dirMode : mode)
      await handle.sync()
    } finally {
      await handle.close()
    }
  } catch (error) {
    throw storeFailure(file, error)
  }
}

/** Sets it on everything in a generation's folder, then on the folder: before the rename that publishes it. @throws Failure STANDBY_IO */
export async function ownGeneration(dir: string, ownership: Ownership): Promise<void> {
  for (const name of await readdir(dir)) await own(path.join(dir, name), ownership)
  await own(dir, ownership)
}

/** Sets it on the folders that lead to a clone's generations; what is staged stays private. @throws Failure STANDBY_IO */
export async function ownFolders(layout: Layout, ownership: Ownership): Promise<void> {
  for (const dir of [layout.dir, layout.generations]) await own(dir, ownership)
}
