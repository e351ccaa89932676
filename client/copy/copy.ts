// The copy: every planned chunk is received straight into a slot, hashed there by a worker thread, and written from it.

import type { NbdConnection } from '../../shared/nbd/client.ts'
import { CHUNK_SIZE, chunkLength, type DiskPlan } from '../plan.ts'
import { storeFailure, type OpenImage } from './image.ts'
import type { Pool } from './pool.ts'

export interface CopyDisk {
  readonly plan: DiskPlan
  readonly connection: NbdConnection
  readonly image: OpenImage
}

/** Counted while the copy runs, so that a failed one is known too. */
export interface Copied {
  /** Bytes received and hashed. */
  read: number
  /** Bytes written; the rest is holes. */
  written: number
}

/**
 * Copies all disks at once within the pool's memory: each slot takes the next chunk, receives it, has it stored, and
 * comes again. Returns when nothing is under way any more, also when it fails.
 * @throws the signal's reason; Failure TRANSFER and the like from the connection; SPACE or STANDBY_IO with the path
 */
export async function copy(
  disks: readonly CopyDisk[],
  pool: Pool,
  totals: Copied,
  signal: AbortSignal,
  onProgress: (bytes: number) => void,
): Promise<void> {
  const chunks = chunksInTurn(disks)

  const useSlot = async (buffer: Uint8Array, slot: number): Promise<void> => {
    for (const { disk, chunk } of chunks) {
      signal.throwIfAborted()
      const { plan, connection, image } = disk
      const length = chunkLength(plan.size, chunk)
      const bytes = buffer.subarray(0, length)
      await connection.read(chunk * CHUNK_SIZE, bytes)
      try {
        const { manifest } = image
        const { zero } = await pool.run({ kind: 'digest', slot, chunk, size: plan.size, manifest })
        if (!zero) await image.write(bytes, chunk * CHUNK_SIZE)
        totals.read += length
        totals.written += zero ? 0 : length
      } catch (error) {
        throw storeFailure(image.file, error)
      }
      onProgress(length)
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

/** The disks' chunks in turn, so that several connections work at the same time; shared by all slots. */
function* chunksInTurn(disks: readonly CopyDisk[]): Generator<{ disk: CopyDisk; chunk: number }> {
  const most = Math.max(0, ...disks.map(({ plan }) => plan.chunks))
  for (let chunk = 0; chunk < most; chunk++)
    for (const disk of disks) if (chunk < disk.plan.chunks) yield { disk, chunk }
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
