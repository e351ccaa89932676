// What a pull will read, and why. Pure: sizes in, a plan out; no files, no clock, no network.

/** One manifest line per MiB; the last chunk at its real length. */
export const CHUNK_SIZE = 1024 * 1024

export interface DiskToPull {
  readonly target: string
  readonly format: 'raw' | 'qcow2'
  /** Bytes. */
  readonly size: number
}

export interface DiskPlan extends DiskToPull {
  /** `full`: every byte is read. (`changed` and `hash` come with tracked sources.) */
  readonly kind: 'full'
  readonly reason: string
  readonly chunks: number
}

/** What the clone already has of a disk, as far as it matters for the reason. */
export interface Held {
  readonly target: string
  readonly size: number
}

export function chunkCount(size: number): number {
  return Math.ceil(size / CHUNK_SIZE)
}

/** Bytes of one chunk: the last may be short. */
export function chunkLength(size: number, chunk: number): number {
  return Math.min(CHUNK_SIZE, size - chunk * CHUNK_SIZE)
}

/** @param held the disks of the newest generation; undefined when there is none */
export function planPull(
  disks: readonly DiskToPull[],
  held: readonly Held[] | undefined,
): DiskPlan[] {
  return disks.map(({ target, format, size }) => {
    const before = held?.find(disk => disk.target === target)
    const reason = !held
      ? 'first pull'
      : !before
        ? 'the disk is new'
        : before.size !== size
          ? `its size was ${before.size} bytes`
          : 'this version copies in full'
    return { target, format, size, kind: 'full', reason, chunks: chunkCount(size) }
  })
}
