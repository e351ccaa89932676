// The removal of a generation that others may need: their records are first made to need the next one instead.

import { open, rename, rm, type FileHandle } from 'node:fs/promises'
import path from 'node:path'
import { Cleanup } from '../../shared/cleanup.ts'
import { Failure } from '../../shared/failures.ts'
import { fsyncPath } from '../../shared/host/durable.ts'
import { storeFailure } from '../copy/image.ts'
import { openPool } from '../copy/pool.ts'
import { BATCH, workOff } from '../copy/runs.ts'
import { chunkCount } from '../plan.ts'
import { noteDamage } from './exchange-steps.ts'
import type { Sound } from './generation.ts'
import { manifestName, type Layout } from './layout.ts'
import { differing, recordName, recordsOf } from './record.ts'
import { chainOf, isWhole, viewOf, type Disk } from './view.ts'

/** A record of another generation that is against the one to be removed. */
interface Dependent {
  readonly found: Sound
  readonly disk: Disk
}

async function dependentsOf(sound: readonly Sound[], doomed: Sound): Promise<Dependent[]> {
  const dependents: Dependent[] = []
  for (const found of sound)
    for (const disk of found.generation.disks)
      if ((await recordsOf(found.dir, disk)).includes(doomed.id)) dependents.push({ found, disk })
  return dependents
}

/** Why a generation may not go: it has what others are made of, and nothing can take its place. */
export async function neededBy(
  sound: readonly Sound[],
  doomed: Sound,
): Promise<string | undefined> {
  for (const { found, disk } of await dependentsOf(sound, doomed)) {
    const held = doomed.generation.disks.find(({ target }) => target === disk.target)
    if (held && (await isWhole(doomed, held)))
      return `holds the image of ${disk.target} that ${found.id} needs`
    try {
      await chainOf(sound, found, disk.target)
    } catch (error) {
      return `${found.id} needs it: ${(error as Error).message}`
    }
  }
  return undefined
}

/**
 * Removes a generation under the clone's lock. It is renamed first: what is half removed is in staging/, where the next run
 * clears it away. @param sound all that are. @throws Failure SPACE, STANDBY_IO, INTEGRITY, and then it is still there
 */
export async function removeGeneration(
  layout: Layout,
  sound: readonly Sound[],
  doomed: Sound,
): Promise<void> {
  for (const dependent of await dependentsOf(sound, doomed)) await rebase(sound, dependent, doomed)
  const leaving = path.join(layout.staging, `${doomed.id}.doomed`)
  await rename(doomed.dir, leaving)
  await fsyncPath(layout.generations)
  await rm(leaving, { recursive: true, force: true })
}

/** Makes a record against `doomed` one against the next generation of the chain: complete beside it, then in its place. */
async function rebase(
  sound: readonly Sound[],
  { found, disk }: Dependent,
  doomed: Sound,
): Promise<void> {
  const [, second, next] = await chainOf(sound, found, disk.target)
  const old = path.join(found.dir, recordName(disk, doomed.id))
  // Else it is left over from a rewriting that was cut short, and nothing needs it.
  if (second?.found.id === doomed.id) {
    if (!next) throw new Failure('INTERNAL', `${doomed.dir} holds an image that ${found.id} needs`)
    const fresh = path.join(found.dir, recordName(disk, next.found.id))
    await writeRecord(sound, { found, disk }, path.join(next.found.dir, manifestName(disk)), fresh)
    await rename(`${fresh}.new`, fresh)
    await fsyncPath(found.dir)
  }
  await rm(old)
  await fsyncPath(found.dir)
}

async function writeRecord(
  sound: readonly Sound[],
  { found, disk }: Dependent,
  against: string,
  fresh: string,
): Promise<void> {
  const { size } = disk
  const chunks = chunkCount(size)
  const beside = `${fresh}.new`
  await using cleanup = new Cleanup()
  const opened = async (file: string, flags: string): Promise<FileHandle> => {
    const handle = await open(file, flags, 0o600)
    cleanup.defer(() => handle.close())
    return handle
  }
  try {
    const view = await viewOf(sound, found, disk)
    cleanup.defer(() => view[Symbol.asyncDispose]())
    const { fd: next } = await opened(against, 'r')
    const record = await opened(beside, 'w+')
    await record.truncate(size)
    const pool = openPool(chunks)
    cleanup.defer(() => pool[Symbol.asyncDispose]())
    const job = {
      ...({ kind: 'move', to: record.fd, size, manifest: view.manifest } as const),
      ...({ onto: 'fresh', wrong: 'keep' } as const),
    }
    const runs = (function* () {
      for (const { chunk, count } of differing(view.manifest, next, chunks, BATCH))
        yield* view.runs(chunk, count)
    })()
    const { signal } = new AbortController()
    const where = { pool, signal }
    const bad = await workOff(runs, ({ fd, direct }) => ({ ...job, fd, direct }), beside, where)
    await record.sync()
    await noteDamage(found.dir, disk.target, bad)
  } catch (error) {
    await rm(beside, { force: true })
    throw storeFailure(beside, error)
  }
}
