// The disks of one pull, opened for the copy: the connection, the staged image, what it is built upon, and which chunks to get.

import { Cleanup } from '../../shared/cleanup.ts'
import { Failure } from '../../shared/failures.ts'
import { chunkLength, type DiskPlan } from '../plan.ts'
import { writeDigests } from '../store/manifest.ts'
import { openDonor } from '../store/donor.ts'
import type { Bases } from '../store/bases.ts'
import { openStaged } from '../store/stage.ts'
import { chunkSet } from './chunk-set.ts'
import type { Copied, CopyDisk } from './copy.ts'
import { storeFailure } from './image.ts'
import { differingChunks, everyChunk } from './wanted.ts'

export interface Origin {
  readonly connections: ReadonlyMap<string, CopyDisk['connection']>
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
    const wanted = byHash
      ? differingChunks(
          disk.chunks,
          async (chunk, count) => {
            const digests = await ask(chunk, count)
            for (let at = chunk; at < chunk + count; at++)
              totals.hashed += chunkLength(disk.size, at)
            return digests
          },
          (chunk, digests) => {
            try {
              writeDigests(image.manifest, chunk, digests)
            } catch (error) {
              throw storeFailure(image.file, error)
            }
          },
          was,
          chunk => onProgress(chunkLength(disk.size, chunk)),
        )
      : everyChunk(disk.chunks)
    disks.push({
      ...{ plan: disk, connection, image, wanted, donor: given },
      // By hash, only what differs is got at all.
      was: byHash ? undefined : was,
      written: chunkSet(disk.chunks),
    })
  }
  return disks
}
