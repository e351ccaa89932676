// Where the bytes of a generation's disk lie: in a whole image, or in a chain of records that ends at one. Reading, verify,
// export and rollback all ask here, whatever way a clone keeps its generations.

import { constants } from 'node:fs'
import { lstat, open, type FileHandle } from 'node:fs/promises'
import path from 'node:path'
import { Failure } from '../../shared/failures.ts'
import { storeFailure } from '../copy/image.ts'
import type { Generation, Sound } from './generation.ts'
import { imageName, manifestName } from './layout.ts'
import { readDigests } from './manifest.ts'
import { recordName, recordsOf, type Run } from './record.ts'

export type Disk = Generation['disks'][number]

/** One file of a chain. */
export interface Link {
  readonly found: Sound
  readonly disk: Disk
  /** The whole image, or the record. */
  readonly file: string
  readonly manifest: string
  /** The generation that has all other chunks; undefined for a whole image. */
  readonly against: string | undefined
}

/** Chunks that lie one after another in one open file, at their own offsets. */
export interface FileRun extends Run {
  readonly file: string
  readonly fd: number
  /** The same file past the page cache; undefined where the file system has no O_DIRECT. */
  readonly direct: number | undefined
}

/** One disk of one generation, open for reading. Descriptors are plain numbers because the worker threads use them. */
export interface View extends AsyncDisposable {
  readonly disk: Disk
  /** Every file that holds chunks of it, the generation's own first; the last one is a whole image. */
  readonly files: readonly string[]
  /** The generation's own manifest, open. */
  readonly manifest: number
  readonly manifestFile: string
  /** Where `count` chunks from `chunk` on lie, in their order. A chunk past the manifest's end is looked for in the image. */
  runs(chunk: number, count: number): FileRun[]
}

/** Whether a generation holds a disk as a whole image (a file, or a link to a block device), needing no other generation. */
export async function isWhole(found: Sound, disk: Disk): Promise<boolean> {
  return exists(path.join(found.dir, imageName(disk)))
}

/** Whether a generation holds all its disks as whole images, so that a domain could use them. */
export async function isAllWhole(found: Sound): Promise<boolean> {
  for (const disk of found.generation.disks) if (!(await isWhole(found, disk))) return false
  return true
}

/**
 * The files that hold a disk, from the generation's own to a whole image.
 * @param generations all that are sound. @throws Failure INTEGRITY when the chain is broken
 */
export async function chainOf(
  generations: readonly Sound[],
  found: Sound,
  target: string,
): Promise<Link[]> {
  const chain: Link[] = []
  for (let at = found; ;) {
    if (chain.some(link => link.found.id === at.id))
      throw broken(found, target, `its records go round in a circle at ${at.id}`)
    const disk = at.generation.disks.find(one => one.target === target)
    if (!disk) throw broken(found, target, `generation ${at.id} does not have this disk`)
    const link = { found: at, disk, manifest: path.join(at.dir, manifestName(disk)) }
    const image = path.join(at.dir, imageName(disk))
    if (await exists(image)) return [...chain, { ...link, file: image, against: undefined }]
    const records = await recordsOf(at.dir, disk)
    // Two of them are left when a rewriting was cut short: each is complete, and one leads on.
    const next = generations.find(one => records.includes(one.id))
    if (!next) {
      const [gone] = records
      const why =
        gone === undefined
          ? `there is no ${image}`
          : `${path.join(at.dir, recordName(disk, gone))} needs generation ${gone}, which is gone or broken`
      throw broken(found, target, why)
    }
    const file = path.join(at.dir, recordName(disk, next.id))
    chain.push({ ...link, file, against: next.id })
    at = next
  }
}

/**
 * Opens all files that hold a generation's disk; dispose of it after the threads that use its descriptors have ended.
 * @param generations all that are sound. @throws Failure INTEGRITY when the chain is broken, STANDBY_IO with the path
 */
export async function viewOf(
  generations: readonly Sound[],
  found: Sound,
  disk: Disk,
): Promise<View> {
  const chain = await chainOf(generations, found, disk.target)
  const handles: FileHandle[] = []
  const close = async (): Promise<void> => {
    for (const handle of handles.splice(0)) await handle.close()
  }
  const opened = async (file: string, flags: number): Promise<number> => {
    const handle = await open(file, flags)
    handles.push(handle)
    return handle.fd
  }
  const links: OpenLink[] = []
  for (const { file, manifest } of chain) {
    try {
      links.push({
        file,
        fd: await opened(file, constants.O_RDONLY),
        direct: await opened(file, constants.O_RDONLY | constants.O_DIRECT).catch(() => undefined),
        manifest: await opened(manifest, constants.O_RDONLY),
      })
    } catch (error) {
      await close()
      const { code, path: named = file } = error as NodeJS.ErrnoException
      if (code === 'ENOENT') throw broken(found, disk.target, `${named} is missing`)
      throw storeFailure(named, error)
    }
  }
  return {
    disk,
    files: chain.map(({ file }) => file),
    manifest: links[0]?.manifest ?? -1,
    manifestFile: path.join(found.dir, manifestName(disk)),
    runs: (chunk, count) => runsIn(links, chunk, count),
    [Symbol.asyncDispose]: close,
  }
}

interface OpenLink {
  readonly file: string
  readonly fd: number
  readonly direct: number | undefined
  readonly manifest: number
}

function runsIn(links: readonly OpenLink[], chunk: number, count: number): FileRun[] {
  // A record has the chunks whose lines differ from those of the next link; what it lacks, the next one has to give.
  const holders = new Array<OpenLink | undefined>(count)
  const lines = links.map(({ manifest }) =>
    links.length > 1 ? readDigests(manifest, chunk, count) : [],
  )
  links.slice(0, -1).forEach((link, depth) => {
    for (let at = 0; at < count; at++)
      if (lines[depth]?.[at] !== lines[depth + 1]?.[at]) holders[at] ??= link
  })
  const runs: FileRun[] = []
  for (let at = 0; at < count; at++) {
    const holder = holders[at] ?? links.at(-1)
    if (!holder) continue
    const last = runs.at(-1)
    if (last?.fd === holder.fd) runs[runs.length - 1] = { ...last, count: last.count + 1 }
    else {
      const { file, fd, direct } = holder
      runs.push({ file, fd, direct, chunk: chunk + at, count: 1 })
    }
  }
  return runs
}

const broken = ({ id }: Sound, target: string, why: string): Failure =>
  new Failure('INTEGRITY', `disk ${target} of generation ${id} cannot be read: ${why}`, {
    remedy: 'use another generation: clone list DOMAIN; and pull again',
  })

/** Whether a name exists, a link that leads nowhere too. @throws Failure STANDBY_IO with the path */
export async function exists(file: string): Promise<boolean> {
  try {
    await lstat(file)
    return true
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false
    throw storeFailure(file, error)
  }
}
