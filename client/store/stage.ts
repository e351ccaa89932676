// Staging: where a pull builds the next generation, beside those that are published. Nothing published is written here.

import { constants } from 'node:fs'
import { copyFile, mkdir, open, rename, rm, symlink, type FileHandle } from 'node:fs/promises'
import path from 'node:path'
import { Failure } from '../../shared/failures.ts'
import { reasonOf, run } from '../../shared/host/run.ts'
import { createImage, patchImage, storeFailure, type OpenImage } from '../copy/image.ts'
import type { DiskToPull } from '../plan.ts'
import type { Base, Bases } from './bases.ts'
import { imageName, manifestName, type Layout } from './layout.ts'
import { recordName } from './record.ts'

/** The folder of a pull whose recovery point is not known yet. */
const INCOMING = 'incoming'

/**
 * Before the source is frozen: an empty folder, and in it clones or copies of what the disks are built upon; in place there
 * is nothing to do yet. Only under the clone's lock. @throws Failure SPACE or STANDBY_IO with the path
 */
export async function stageBases(layout: Layout, bases: Bases, signal: AbortSignal): Promise<void> {
  const dir = path.join(layout.staging, INCOMING)
  await rm(dir, { recursive: true, force: true })
  await mkdir(dir, { mode: 0o700 })
  for (const base of bases.of.values()) {
    signal.throwIfAborted()
    await stageBase(base, path.join(dir, imageName(base.disk)), signal)
  }
}

async function stageBase(
  { image, method }: Base,
  file: string,
  signal: AbortSignal,
): Promise<void> {
  if (method === 'in-place') return
  if (method === 'reflink')
    return copyFile(image, file, constants.COPYFILE_FICLONE_FORCE).catch((error: unknown) => {
      throw storeFailure(file, error)
    })
  const copied = await run('cp', ['--sparse=always', '--reflink=auto', '--', image, file], {
    signal,
    timeoutMs: 0,
    diesWithUs: true,
  })
  if (copied.exitCode === 0) return
  const reason = reasonOf(copied)
  throw new Failure(/No space left/.test(reason) ? 'SPACE' : 'STANDBY_IO', `${file}: ${reason}`)
}

/** The recovery point is known: the folder gets its name. @returns its path */
export async function nameStaging(layout: Layout, id: string): Promise<string> {
  const dir = path.join(layout.staging, id)
  // What an interrupted pull of the very same session has left.
  await rm(dir, { recursive: true, force: true })
  await rename(path.join(layout.staging, INCOMING), dir)
  return dir
}

export interface StagedDisk extends AsyncDisposable {
  readonly image: OpenImage
  /** The basis' manifest, opened; undefined without one, or when its digests say nothing of its bytes. */
  readonly was: number | undefined
}

/**
 * Opens what the copy of one disk is written to: a clone of the base, a record of what differs from it, a block device on
 * which nothing of worth is, or a new image. @throws Failure SPACE or STANDBY_IO with the path
 */
export async function openStaged(dir: string, disk: DiskToPull, bases: Bases): Promise<StagedDisk> {
  const base = bases.of.get(disk.target)
  const image = await openTarget(dir, disk, bases)
  let was: FileHandle | undefined
  const close = async (): Promise<void> => {
    await was?.close()
    await image[Symbol.asyncDispose]()
  }
  if (!base?.trusted || !isBuiltUpon(base, disk))
    return { image, was: undefined, [Symbol.asyncDispose]: close }
  const manifest = path.join(base.generation.dir, manifestName(base.disk))
  try {
    was = await open(manifest, 'r')
    return { image, was: was.fd, [Symbol.asyncDispose]: close }
  } catch (error) {
    await close()
    throw storeFailure(manifest, error)
  }
}

/** A domain that was changed between description and freeze may have another format; on a device that does not matter. */
const isBuiltUpon = ({ disk: before, method }: Base, disk: DiskToPull): boolean =>
  method === 'in-place' || before.format === disk.format

async function openTarget(dir: string, disk: DiskToPull, bases: Bases): Promise<OpenImage> {
  const file = path.join(dir, imageName(disk))
  const manifest = path.join(dir, manifestName(disk))
  const base = bases.of.get(disk.target)
  const device = bases.blank.get(disk.target)
  if (device !== undefined) {
    await symlink(device, file)
    return patchImage(file, manifest, disk.size)
  }
  if (!base || !isBuiltUpon(base, disk)) return createImage(file, manifest, disk.size)
  if (base.method !== 'in-place') return patchImage(file, manifest, disk.size)
  return createImage(path.join(dir, recordName(disk, base.generation.id)), manifest, disk.size)
}
