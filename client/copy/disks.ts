// The disks of one pull, opened for the copy: the connection, the staged image, what it is built upon, and which chunks to get.

import { open, type FileHandle } from 'node:fs/promises'
import { Cleanup } from '../../shared/cleanup.ts'
import { Failure } from '../../shared/failures.ts'
import type { GrainSet } from '../../shared/grain-set.ts'
import { chunkLength, type DiskPlan } from '../plan.ts'
import { writeDigests } from '../store/manifest.ts'
import { openDonor } from '../store/donor.ts'
import type { Bases } from '../store/bases.ts'
import { noteDamage } from '../store/exchange-steps.ts'
import { openStaged } from '../store/stage.ts'
import { chunkSet } from './chunk-set.ts'
import type { Copied, CopyDisk } from './copy.ts'
import { storeFailure } from './image.ts'
import { changedChunks, differingChunks, everyChunk } from './wanted.ts'

export interface Origin {
  readonly connections: ReadonlyMap<string, CopyDisk['connection']>
  /** Target -> what changed since the basis, for the plan's `changed`. */
  readonly changed: ReadonlyMap<string, GrainSet>
  /** Target -> chunk -> the source's digest of some of which only some changed. */
  readonly promised: ReadonlyMap<string, ReadonlyMap<number, string>>
  /** Target -> where the source has data, as far as it knows. */
  readonly data: ReadonlyMap<string, GrainSet>
  /** The source's digests of some chunks in a row of a disk. */
  digests(disk: DiskPlan): (chunk: number, count: number) => Promise<readonly string[]>
}

/**
 * Opens all disks of a plan; the cleanup closes them. @param staging the folder of the recovery point
 * @param donor the folder of an interrupted pull. @param onProgress told of bytes that need not be got
 * @throws Failure SPACE or STANDBY_IO with the path
 */
export async function openDisks(
  cleanup: Cleanup,
  staging: string,
  plan: readonly DiskPlan[],
  bases: Bases,
  donor: string | undefined,
  origin: Origin,
  totals: Copied,
  onProgress: (bytes: number) => void,
): Promise<CopyDisk[]> {
  const disks: CopyDisk[] = []
  for (const disk of plan) {
    const connection = origin.connections.get(disk.target)
    if (!connection) throw new Failure('INTERNAL', `no connection for disk ${disk.target}`)
    const staged = await openStaged(staging, disk, bases)
    cleanup.defer(() => staged[Symbol.asyncDispose]())
    const { image, was } = staged
    const byHash = disk.kind === 'hash'
    const given = byHash && donor !== undefined ? await openDonor(donor, disk) : undefined
    cleanup.defer(() => given?.[Symbol.asyncDispose]())
    const ask = origin.digests(disk)
    const data = origin.data.get(disk.target)
    const changed = disk.kind === 'changed' ? origin.changed.get(disk.target) : undefined
    const promised = origin.promised.get(disk.target) ?? new Map<number, string>()
    const base = bases.of.get(disk.target)
    const basis = changed && (await openBasis(bases, disk))
    cleanup.defer(() => basis?.close())
    const onSame = (chunk: number): void => onProgress(chunkLength(disk.size, chunk))
    const record = (chunk: number, digests: readonly string[]): void => {
      try {
        writeDigests(image.manifest, chunk, digests)
      } catch (error) {
        throw storeFailure(image.file, error)
      }
    }
    const wanted = byHash
      ? differingChunks(
          disk.chunks,
          async (chunk, count) => {
            const digests = await ask(chunk, count)
            for (let at = chunk; at < chunk + count; at++)
              totals.hashed += chunkLength(disk.size, at)
            return digests
          },
          record,
          was,
          onSame,
        )
      : changed && was !== undefined
        ? changedChunks(changed, data, promised, was, record, onSame)
        : everyChunk(disk.size, data)
    disks.push({
      ...{ plan: disk, connection, image, wanted, donor: given, basis: basis?.fd },
      // By hash, only what differs is got at all.
      was: byHash ? undefined : was,
      written: chunkSet(disk.chunks),
      async onRotten(chunk) {
        if (base) await noteDamage(base.generation.dir, disk.target, [{ chunk, why: 'differs' }])
      },
    })
  }
  return disks
}

/** The image that a disk is built upon, to be read. @throws Failure STANDBY_IO with the path */
async function openBasis({ of }: Bases, { target }: DiskPlan): Promise<FileHandle | undefined> {
  const image = of.get(target)?.image
  if (image === undefined) return undefined
  return open(image, 'r').catch((error: unknown) => {
    throw storeFailure(image, error)
  })
}
