// One generation against its manifests: every byte of every disk, wherever it lies, and what is wrong with it in words.

import { stat } from 'node:fs/promises'
import path from 'node:path'
import { Failure } from '../shared/failures.ts'
import { check, type BadPlace } from './copy/check.ts'
import { storeFailure } from './copy/image.ts'
import { isMediumError } from './copy/medium.ts'
import type { Pool } from './copy/pool.ts'
import { offsetOf } from './copy/runs.ts'
import { chunkCount } from './plan.ts'
import type { Sound } from './store/generation.ts'
import { imageName, manifestName } from './store/layout.ts'
import { manifestDigest } from './store/manifest.ts'
import { recordsOf } from './store/record.ts'
import { chainOf, viewOf, type Disk, type Link } from './store/view.ts'

export interface VerifiedDisk {
  readonly target: string
  /** The generation's own file of the disk: a whole image, or a record. */
  readonly file: string
  readonly size: number
  readonly bad: readonly BadPlace[]
  /** Set when a manifest that the disk needs is not what its generation.json says. */
  readonly manifest?: string
  /** Set when an image or record is missing, or its length is not what generation.json says. */
  readonly image?: string
  /** Files whose bytes may have come from the page cache, so that nothing is known of their medium. */
  readonly cached?: readonly string[]
}

/** What is needed to read a generation: the clone's others, which may hold its bytes, and threads to hash them. */
export interface Reader {
  /** All that are sound. */
  readonly generations: readonly Sound[]
  readonly pool: Pool
  readonly signal: AbortSignal
  readonly onProgress: (bytes: number) => void
}

/** Bytes that verifying a generation reads. */
export const sizeOf = ({ generation }: Sound): number =>
  generation.disks.reduce((sum, { size }) => sum + size, 0)

/** Re-reads a generation, one disk after the other. @throws the signal's reason; Failure STANDBY_IO with the path */
export async function verifyGeneration(found: Sound, reader: Reader): Promise<VerifiedDisk[]> {
  const disks: VerifiedDisk[] = []
  for (const disk of found.generation.disks) disks.push(await verifyDisk(found, disk, reader))
  return disks
}

/** @throws the signal's reason; Failure STANDBY_IO with the path */
export async function verifyDisk(found: Sound, disk: Disk, reader: Reader): Promise<VerifiedDisk> {
  const { generations, pool, signal, onProgress } = reader
  const { target, size } = disk
  const chain = await orDamage(() => chainOf(generations, found, target))
  if (typeof chain === 'string') {
    const file = path.join(found.dir, imageName(disk))
    const manifest = await manifestProblem(path.join(found.dir, manifestName(disk)), disk)
    const records = await orDamage(() => recordsOf(found.dir, disk))
    const image = records.length === 0 ? `${file}: missing` : chain
    return { target, file, size, bad: [], ...some({ manifest, image }) }
  }
  const problems = await Promise.all(chain.map(link => manifestProblem(link.manifest, link.disk)))
  const manifest = problems.find(problem => problem !== undefined)
  const [own] = chain
  const length = own && (await lengthProblem(own))
  const file = own?.file ?? ''
  const checked = await orDamage(async () => {
    await using view = await viewOf(generations, found, disk)
    return await check(view, pool, signal, onProgress)
  })
  if (typeof checked === 'string')
    return { target, file, size, bad: [], ...some({ manifest, image: length ?? checked }) }
  const cached = checked.cached.length > 0 ? checked.cached : undefined
  return { target, file, size, bad: checked.bad, ...some({ manifest, image: length, cached }) }
}

/** What is wrong with a disk, each in a few words. */
export function problemsOf({ target, bad, manifest, image }: VerifiedDisk): string[] {
  const [first] = bad
  const chunks =
    first && `${target}: ${bad.length} bad chunks, the first is ${offsetOf(first)} of ${first.file}`
  return [...new Set([manifest, image, chunks])].filter(problem => problem !== undefined)
}

/** The result, or the sentence that tells of damage. */
async function orDamage<T>(work: () => Promise<T>): Promise<T | string> {
  try {
    return await work()
  } catch (error) {
    if (error instanceof Failure && error.code === 'INTEGRITY') return error.message
    if (isMediumError(error)) return error instanceof Error ? error.message : String(error)
    throw error
  }
}

async function lengthProblem({ file, disk }: Link): Promise<string | undefined> {
  const found = await orDamage(() =>
    stat(file).catch((error: unknown) => {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
      throw storeFailure(file, error)
    }),
  )
  if (typeof found === 'string') return found
  if (!found) return `${file}: missing`
  // A device is as long as it is; what it lacks cannot be read.
  if (!found.isFile() || found.size === disk.size) return undefined
  return `${file}: ${found.size} bytes, but generation.json says ${disk.size}`
}

/** @returns what is wrong with a manifest. @throws Failure STANDBY_IO with the path */
export async function manifestProblem(
  file: string,
  disk: { size: number; digest: string },
): Promise<string | undefined> {
  try {
    if ((await manifestDigest(file, chunkCount(disk.size))) === disk.digest) return undefined
    return `${file}: not the manifest that generation.json names`
  } catch (error) {
    if (error instanceof Failure) return error.message
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return `${file}: missing`
    if (isMediumError(error)) return `${file}: unreadable`
    throw storeFailure(file, error)
  }
}

/** Only the keys that have a value. */
function some<T extends object>(facts: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(facts).filter(([, value]) => value !== undefined)) as {
    [K in keyof T]?: Exclude<T[K], undefined>
  }
}
