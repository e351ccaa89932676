// clone verify: re-reads the images of one generation against their manifests and names what differs.

import { stat } from 'node:fs/promises'
import path from 'node:path'
import { Cleanup } from '../../shared/cleanup.ts'
import { Failure, toFailure } from '../../shared/failures.ts'
import type { Watcher } from '../attempt.ts'
import type { CloneConfig } from '../config/effective.ts'
import { openImage, storeFailure } from '../copy/image.ts'
import { openPool, type Pool } from '../copy/pool.ts'
import { offsetOf, verify } from '../copy/verify.ts'
import type { BadChunk } from '../copy/worker.ts'
import { chunkCount } from '../plan.ts'
import { repairCurrent } from '../store/current.ts'
import { clearDamage, markDamaged } from '../store/damage.ts'
import {
  listGenerations,
  soundGenerations,
  type Generation,
  type Sound,
} from '../store/generation.ts'
import { lockClone } from '../store/guard.ts'
import { imageName, layoutOf, manifestName } from '../store/layout.ts'
import { manifestDigest } from '../store/manifest.ts'
import { readState } from '../store/state.ts'
import { recover } from '../store/undo.ts'

export interface VerifiedDisk {
  readonly target: string
  readonly file: string
  readonly size: number
  readonly bad: readonly BadChunk[]
  /** Set when the manifest itself is not what generation.json says. */
  readonly manifest?: string
  /** Set when the image is missing, or its length is not what generation.json says. */
  readonly image?: string
}
export interface Verified {
  readonly clone: string
  readonly id: string
  readonly disks: readonly VerifiedDisk[]
  readonly sound: boolean
  /** Why the result could not be recorded; unset when it was. */
  readonly unrecorded?: string
}

/**
 * Damage is recorded beside the generation, which then counts no more until a verify finds nothing wrong.
 * @param which a recovery point's id or a seq; the newest when undefined
 * @throws Failure USAGE, LOCKED, INTEGRITY for a broken generation.json
 */
export async function verifyCommand(
  clone: CloneConfig,
  which: string | undefined,
  signal: AbortSignal,
  watcher: Watcher,
): Promise<Verified> {
  await using cleanup = new Cleanup()
  cleanup.defer(() => watcher.done())
  await chosen(clone, which)
  cleanup.defer(lockClone(layoutOf(clone.dir), 'verify'))
  await recover(layoutOf(clone.dir), signal)
  // Chosen again: before the lock a pull may have published or pruned.
  const found = await chosen(clone, which)
  const { id, generation } = found
  const pool = openPool(generation.disks.reduce((sum, { size }) => sum + chunkCount(size), 0))
  cleanup.defer(() => pool[Symbol.asyncDispose]())

  watcher.phase(
    'verify',
    generation.disks.reduce((sum, { size }) => sum + size, 0),
  )
  const disks: VerifiedDisk[] = []
  for (const disk of generation.disks)
    disks.push(await verifyDisk(found, disk, pool, signal, watcher))
  const problems = disks.flatMap(problemsOf)
  const unrecorded = await record(clone, found, problems).then(
    () => undefined,
    (error: unknown) => toFailure(error).message,
  )
  return {
    clone: clone.name,
    id,
    disks,
    sound: problems.length === 0,
    ...(unrecorded !== undefined && { unrecorded }),
  }
}

async function verifyDisk(
  { dir }: Sound,
  disk: Generation['disks'][number],
  pool: Pool,
  signal: AbortSignal,
  watcher: Watcher,
): Promise<VerifiedDisk> {
  const { target, size } = disk
  const file = path.join(dir, imageName(disk))
  const manifestFile = path.join(dir, manifestName(disk))
  const length = await lengthOf(file)
  const manifest = await manifestProblem(manifestFile, disk)
  const missing = length === undefined || (await lengthOf(manifestFile)) === undefined
  const bad = missing ? [] : await readDisk()
  const image =
    length === undefined
      ? `${file}: missing`
      : length === size
        ? undefined
        : `${file}: ${length} bytes, but generation.json says ${size}`
  return {
    ...{ target, file, size, bad },
    ...(manifest !== undefined && { manifest }),
    ...(image !== undefined && { image }),
  }

  async function readDisk(): Promise<BadChunk[]> {
    await using image = await openImage(file, manifestFile)
    return await verify(image, size, pool, signal, bytes => watcher.progress(bytes))
  }
}

/** Bytes of a file; undefined when it does not exist. @throws Failure STANDBY_IO with the path */
async function lengthOf(file: string): Promise<number | undefined> {
  try {
    return (await stat(file)).size
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw storeFailure(file, error)
  }
}

/** @throws Failure STANDBY_IO with the path */
async function manifestProblem(
  file: string,
  disk: { size: number; digest: string },
): Promise<string | undefined> {
  try {
    if ((await manifestDigest(file, chunkCount(disk.size))) === disk.digest) return undefined
    return `${file}: not the manifest that generation.json names`
  } catch (error) {
    if (error instanceof Failure) return error.message
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ENOENT') return `${file}: missing`
    if (code === 'EIO') return `${file}: unreadable`
    throw storeFailure(file, error)
  }
}

/** What is wrong with a disk, each in a few words. */
function problemsOf({ target, bad, manifest, image }: VerifiedDisk): string[] {
  const [first] = bad
  const chunks = first && `${target}: ${bad.length} bad chunks, the first is ${offsetOf(first)}`
  return [manifest, image, chunks].filter(problem => problem !== undefined)
}

/** Keeps the result beside the generation, and moves `current` off a damaged one. */
async function record(clone: CloneConfig, found: Sound, problems: string[]): Promise<void> {
  if (problems.length > 0) await markDamaged(found.dir, problems)
  else if (found.damaged !== undefined) await clearDamage(found.dir)
  else return
  const layout = layoutOf(clone.dir)
  await repairCurrent(layout, await readState(layout), await soundGenerations(clone.dir))
}

async function chosen(clone: CloneConfig, which: string | undefined): Promise<Sound> {
  const found = await listGenerations(clone.dir)
  const match =
    which === undefined
      ? found.filter(one => one.generation).at(-1)
      : found.find(one => one.id === which || String(one.generation?.seq) === which)
  if (match?.generation) return match
  if (match) throw new Failure('INTEGRITY', `generation ${match.id} is broken: ${match.broken}`)
  throw new Failure(
    'USAGE',
    which === undefined
      ? `${clone.name} has no generation to verify`
      : `${clone.name} has no generation ${which}`,
    { remedy: `see: clone list ${clone.name}` },
  )
}
