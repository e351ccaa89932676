// Staging: where a pull builds the next generation, beside those that are published. Nothing published is written here.

import { constants } from 'node:fs'
import { access, copyFile, mkdir, open, rename, rm, type FileHandle } from 'node:fs/promises'
import path from 'node:path'
import { Failure } from '../../shared/failures.ts'
import { reasonOf, run } from '../../shared/host/run.ts'
import { createImage, patchImage, storeFailure, type OpenImage } from '../copy/image.ts'
import type { DiskToPull, Held } from '../plan.ts'
import type { Sound } from './generation.ts'
import { imageName, manifestName, type Layout } from './layout.ts'
import type { Method } from './method.ts'
import { recordName } from './record.ts'

/** The folder of a pull whose recovery point is not known yet. */
const INCOMING = 'incoming'

/** What the disks of a pull are built upon. */
export interface Bases {
  readonly generation: Sound | undefined
  readonly method: Method
  /** Names of images that the generation has whole. */
  readonly images: ReadonlySet<string>
  /** Whether the generation's digests say what its images hold: not when it is damaged, or everything is to be written anew. */
  readonly trusted: boolean
}

/**
 * Before the source is frozen: an empty folder, and in it clones or copies of what the disks are built upon; in place there
 * is nothing to do yet. Only under the clone's lock. @param disks as the source describes them. @param full nothing is trusted
 * @throws Failure SPACE or STANDBY_IO with the path
 */
export async function stageBases(
  layout: Layout,
  disks: readonly { target: string; format: string }[],
  generation: Sound | undefined,
  method: Method,
  full: boolean,
  signal: AbortSignal,
): Promise<Bases> {
  const dir = path.join(layout.staging, INCOMING)
  await rm(dir, { recursive: true, force: true })
  await mkdir(dir, { mode: 0o700 })
  const images = new Set<string>()
  for (const name of generation ? disks.map(imageName) : []) {
    const image = path.join(generation?.dir ?? '', name)
    if (!generation?.generation.disks.some(disk => imageName(disk) === name)) continue
    if (!(await exists(image))) continue
    signal.throwIfAborted()
    await stageBasis(image, path.join(dir, name), method, signal)
    images.add(name)
  }
  return { generation, method, images, trusted: !full && generation?.damaged === undefined }
}

async function stageBasis(
  image: string,
  file: string,
  method: Method,
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

const exists = (file: string): Promise<boolean> =>
  access(file).then(
    () => true,
    () => false,
  )

/** What a plan must know of the disks that can be built upon; undefined without a generation. @param images their names; all, when left out */
export function heldBy(
  generation: Sound | undefined,
  images?: ReadonlySet<string>,
): Held[] | undefined {
  return generation?.generation.disks
    .filter(disk => images?.has(imageName(disk)) ?? true)
    .map(({ target, format, size }) => {
      return { target, format, size, id: generation.id, damaged: generation.damaged !== undefined }
    })
}

/** The recovery point is known: the folder gets its name. @returns its path */
export async function nameStaging(layout: Layout, id: string): Promise<string> {
  const dir = path.join(layout.staging, id)
  await rename(path.join(layout.staging, INCOMING), dir)
  return dir
}

export interface StagedDisk extends AsyncDisposable {
  readonly image: OpenImage
  /** The basis' manifest, opened; undefined without one, or when its digests say nothing of its bytes. */
  readonly was: number | undefined
}

/**
 * Opens what the copy of one disk is written to: a clone of the basis, a record of what differs from it, or a new image.
 * @throws Failure SPACE or STANDBY_IO with the path
 */
export async function openStaged(
  dir: string,
  disk: DiskToPull,
  { generation, method, images, trusted }: Bases,
): Promise<StagedDisk> {
  const name = imageName(disk)
  const file = path.join(dir, name)
  const manifest = path.join(dir, manifestName(disk))
  const basis = images.has(name) ? generation : undefined
  const image = !basis
    ? await createImage(file, manifest, disk.size)
    : method === 'in-place'
      ? await createImage(path.join(dir, recordName(disk, basis.id)), manifest, disk.size)
      : await patchImage(file, manifest, disk.size)
  let was: FileHandle | undefined
  const close = async (): Promise<void> => {
    await was?.close()
    await image[Symbol.asyncDispose]()
  }
  if (!basis || !trusted) return { image, was: undefined, [Symbol.asyncDispose]: close }
  try {
    was = await open(path.join(basis.dir, manifestName(disk)), 'r')
    return { image, was: was.fd, [Symbol.asyncDispose]: close }
  } catch (error) {
    await close()
    throw storeFailure(path.join(basis.dir, manifestName(disk)), error)
  }
}
