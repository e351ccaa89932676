// The copy: every chunk that the plan wants is received straight into a slot, hashed there by a worker thread, and written
// from it where it differs from what the image holds already.

import { Failure } from '../../shared/failures.ts'
import type { Extent } from '../../shared/grain-set.ts'
import { zeroDigest } from '../../shared/zeros.ts'
import { CHUNK_SIZE, chunkLength, type DiskPlan } from '../plan.ts'
import { readDigests, writeDigests } from '../store/manifest.ts'
import type { Donor } from '../store/donor.ts'
import type { ChunkSet } from './chunk-set.ts'
import type { DiskConnection } from '../source/lasting.ts'
import { storeFailure, type OpenImage } from './image.ts'
import type { Pool } from './pool.ts'
import { fill } from './fill.ts'
import { pieces } from './pieces.ts'
import type { Patch, Wanted } from './wanted.ts'
import { TrackingLie } from '../audit.ts'

export interface CopyDisk {
  readonly plan: DiskPlan
  readonly connection: DiskConnection
  readonly image: OpenImage
  /** The chunks to get, in turn; every slot takes the next. */
  readonly wanted: AsyncIterator<Wanted>
  /** The manifest of what the image holds already: a chunk that is the same there is not written. */
  readonly was: number | undefined
  /** The image that this one is built upon, to be read where only some of a chunk changed. */
  readonly basis: number | undefined
  /** A chunk of the basis is not what its manifest says. */
  readonly onRotten: (chunk: number) => Promise<void>
  /** Bytes of an interrupted pull. */
  readonly donor: Donor | undefined
  /** The chunks that were written; only grows. */
  readonly written: ChunkSet
}

/** Counted while the copy runs, so that a failed one is known too. Bytes. */
export interface Copied {
  /** Received. */
  read: number
  /** Written; the rest is holes, or was there. */
  written: number
  /** Of chunks that differ from the basis; all, without one. */
  changed: number
  /** Hashed by the source. */
  hashed: number
  /** Taken from an interrupted pull instead of being received. */
  reused: number
}

/**
 * Copies all disks at once within the pool's memory: each slot takes the next chunk, receives it, has it stored, and
 * comes again. Returns when nothing is under way any more, also when it fails.
 * @throws the signal's reason; Failure TRANSFER and the like from the connection; SPACE or STANDBY_IO with the path;
 * INTEGRITY when a chunk is not what the source said
 */
export async function copy(
  disks: readonly CopyDisk[],
  pool: Pool,
  totals: Copied,
  signal: AbortSignal,
  onProgress: (bytes: number) => void,
): Promise<void> {
  const useSlot = async (buffer: Uint8Array, slot: number): Promise<void> => {
    // Slots begin at different disks, so that several connections work at the same time.
    for (const disk of turned(disks, slot))
      for (let next = await take(disk); next; next = await take(disk)) {
        await copyChunk(disk, next, buffer, slot)
        onProgress(chunkLength(disk.plan.size, next.chunk))
      }
  }

  const take = async ({ wanted }: CopyDisk): Promise<Wanted | undefined> => {
    signal.throwIfAborted()
    const next = await wanted.next()
    return next.done === true ? undefined : next.value
  }

  const copyChunk = async (
    disk: CopyDisk,
    { chunk, expected, hole, patch }: Wanted,
    buffer: Uint8Array,
    slot: number,
  ): Promise<void> => {
    const { plan, connection, image, was, donor, written } = disk
    const length = chunkLength(plan.size, chunk)
    const start = chunk * CHUNK_SIZE
    if (hole || expected === zeroDigest(length)) return zeroChunk(disk, chunk, expected)
    const bytes = buffer.subarray(0, length)
    const { manifest } = image
    const digest = (expected: string | undefined) =>
      pool
        .run({ kind: 'digest', slot, chunk, size: plan.size, manifest, was, expected })
        .catch((error: unknown) => {
          throw storeFailure(image.file, error)
        })
    const receive = async (extents: readonly Extent[]): Promise<void> => {
      await Promise.all(
        extents.map(([offset, length]) => {
          const at = offset - start
          return connection.read(offset, bytes.subarray(at, at + length))
        }),
      )
      for (const [, length] of extents) totals.read += length
    }
    /** Whether the chunk's old bytes are in the buffer, and are what they were: else bit rot would get a new digest. */
    const isOld = async ({ before }: Patch): Promise<boolean> =>
      disk.basis !== undefined &&
      (await fill(disk.basis, chunk, bytes)) &&
      !(await digest(before)).wrong

    /** Else the same bytes once more would leave the bad ones where they are. */
    let isRotten = false
    let isThere = false
    const given = expected !== undefined && (await donor?.read(chunk, expected, bytes)) === true
    let found = given ? await digest(expected) : undefined
    if (found && !found.wrong) totals.reused += length
    else {
      isThere = patch !== undefined && (await isOld(patch))
      isRotten = patch !== undefined && !isThere
      if (isRotten) await disk.onRotten(chunk)
      await receive(patch && !isRotten ? patch.extents : [[start, length]])
      found = await digest(expected)
    }
    if (found.wrong && patch && !isRotten) throw new TrackingLie(plan.target, chunk)
    if (found.wrong)
      throw new Failure(
        'INTEGRITY',
        `disk ${plan.target}: chunk ${chunk} (byte ${chunk * CHUNK_SIZE}) is not what the source's digest says`,
        {
          remedy: 'pull again; if it comes again, suspect the memory or the network of both hosts',
        },
      )
    if (found.same && !isRotten) return
    totals.changed += length
    written.add(chunk)
    // What did not change is there already, and was looked at; a new file has nothing yet.
    const parts: readonly Extent[] =
      patch && isThere && !image.isNew
        ? patch.extents.map(([offset, count]) => [offset - start, count])
        : [[0, length]]
    try {
      for (const part of parts)
        for (const { kind, offset, length } of pieces(part, found.data)) {
          if (kind === 'zeros') await image.zero(start + offset, length)
          else await image.write(bytes.subarray(offset, offset + length), start + offset)
          if (kind === 'data') totals.written += length
        }
    } catch (error) {
      throw storeFailure(image.file, error)
    }
  }

  /** Zeros are not received: the image gets them, and gives the space back. */
  const zeroChunk = async (
    { plan, image, was, written }: CopyDisk,
    chunk: number,
    expected: string | undefined,
  ): Promise<void> => {
    const length = chunkLength(plan.size, chunk)
    const digest = zeroDigest(length)
    try {
      if (expected === undefined) writeDigests(image.manifest, chunk, [digest])
      if (was !== undefined && readDigests(was, chunk, 1)[0] === digest) return
      totals.changed += length
      // Where nothing was ever written, nothing can be read back.
      if (image.isNew) return
      written.add(chunk)
      await image.zero(chunk * CHUNK_SIZE, length)
    } catch (error) {
      throw storeFailure(image.file, error)
    }
  }

  await allOrFirstError(
    pool.slots.map(useSlot),
    // Whatever failed first, nothing may still be receiving into a slot when the caller cleans up.
    error => disks.forEach(({ connection }) => connection.destroy(error)),
  ).catch((error: unknown) => {
    signal.throwIfAborted()
    throw error
  })
}

/** The disks in turn, another one first for each `by`. */
function turned<T>(all: readonly T[], by: number): T[] {
  const at = all.length === 0 ? 0 : by % all.length
  return [...all.slice(at), ...all.slice(0, at)]
}

/** Waits for all; the first to fail decides the error and is told at once. */
export async function allOrFirstError(
  work: readonly Promise<void>[],
  onError: (error: Error) => void,
): Promise<void> {
  let first: Error | undefined
  await Promise.all(
    work.map(one =>
      one.catch((error: unknown) => {
        if (first) return
        first = error instanceof Error ? error : new Error(String(error))
        onError(first)
      }),
    ),
  )
  if (first) throw first
}
