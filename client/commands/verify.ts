// clone verify: re-reads the images of one generation against their manifests and names what differs.

import path from 'node:path'
import { Cleanup } from '../../shared/cleanup.ts'
import { Failure } from '../../shared/failures.ts'
import type { Watcher } from '../attempt.ts'
import type { CloneConfig } from '../config/effective.ts'
import { openImage } from '../copy/image.ts'
import { openPool } from '../copy/pool.ts'
import { verify } from '../copy/verify.ts'
import type { BadChunk } from '../copy/worker.ts'
import { chunkCount } from '../plan.ts'
import { listGenerations, type Found, type Generation } from '../store/generation.ts'
import { lockClone } from '../store/guard.ts'
import { imageName, layoutOf, manifestName } from '../store/layout.ts'
import { manifestDigest } from '../store/manifest.ts'

export interface VerifiedDisk {
  readonly target: string
  readonly file: string
  readonly size: number
  readonly bad: readonly BadChunk[]
  /** Set when the manifest itself is not what generation.json says. */
  readonly manifest?: string
}
export interface Verified {
  readonly clone: string
  readonly id: string
  readonly disks: readonly VerifiedDisk[]
  readonly sound: boolean
}

/** @param which a recovery point's id or a seq; the newest when undefined. @throws Failure USAGE, LOCKED, INTEGRITY for a broken generation.json */
export async function verifyCommand(
  clone: CloneConfig,
  which: string | undefined,
  signal: AbortSignal,
  watcher: Watcher,
): Promise<Verified> {
  await using cleanup = new Cleanup()
  cleanup.defer(() => watcher.done())
  const { id, dir, generation } = await chosen(clone, which)
  cleanup.defer(lockClone(layoutOf(clone.dir), 'verify'))
  const pool = openPool(generation.disks.reduce((sum, { size }) => sum + chunkCount(size), 0))
  cleanup.defer(() => pool[Symbol.asyncDispose]())

  watcher.phase(
    'verify',
    generation.disks.reduce((sum, { size }) => sum + size, 0),
  )
  const disks: VerifiedDisk[] = []
  for (const disk of generation.disks) {
    const file = path.join(dir, imageName(disk))
    const manifestFile = path.join(dir, manifestName(disk))
    await using image = await openImage(file, manifestFile)
    const bad = await verify(image, disk.size, pool, signal, bytes => watcher.progress(bytes))
    const manifest = await manifestProblem(manifestFile, disk)
    const { target, size } = disk
    disks.push({ target, file, size, bad, ...(manifest !== undefined && { manifest }) })
  }
  const sound = disks.every(({ bad, manifest }) => bad.length === 0 && manifest === undefined)
  return { clone: clone.name, id, disks, sound }
}

async function manifestProblem(
  file: string,
  disk: { size: number; digest: string },
): Promise<string | undefined> {
  try {
    if ((await manifestDigest(file, chunkCount(disk.size))) === disk.digest) return undefined
    return `${file}: not the manifest that generation.json names`
  } catch (error) {
    if (error instanceof Failure) return error.message
    throw error
  }
}

async function chosen(
  clone: CloneConfig,
  which: string | undefined,
): Promise<Extract<Found, { generation: Generation }>> {
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
