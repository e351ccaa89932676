// How a disk is cut into chunks: what a manifest line and a digest of the gate stand for. Both hosts count the same way.

/** Bytes of every chunk but the last. */
export const CHUNK_SIZE = 1024 * 1024

/** @param size of the disk in bytes */
export function chunkCount(size: number): number {
  return Math.ceil(size / CHUNK_SIZE)
}

/** Bytes of one chunk: the last may be short. @param size of the disk in bytes */
export function chunkLength(size: number, chunk: number): number {
  return Math.min(CHUNK_SIZE, size - chunk * CHUNK_SIZE)
}
