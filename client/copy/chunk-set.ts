// A set of chunk numbers, a bit each: 8 MiB for a disk of 64 TiB.

import { CHUNK_SIZE, chunkCount, chunkLength } from '../../shared/chunks.ts'
import type { Run } from '../store/record.ts'

export interface ChunkSet {
  add(chunk: number): void
  has(chunk: number): boolean
  readonly size: number
  /** In order, as runs of at most `most` chunks. */
  runs(most: number): Generator<Run>
}

/** Bytes of the chunks of a set. @param size of the disk, bytes */
export function bytesOf(set: ChunkSet, size: number): number {
  const last = chunkCount(size) - 1
  return set.size * CHUNK_SIZE - (set.has(last) ? CHUNK_SIZE - chunkLength(size, last) : 0)
}

/** @param chunks of the disk */
export function chunkSet(chunks: number): ChunkSet {
  const bits = new Uint8Array(Math.ceil(chunks / 8))
  let size = 0
  const has = (chunk: number): boolean => ((bits[chunk >> 3] ?? 0) & (1 << (chunk & 7))) !== 0
  return {
    add(chunk) {
      if (has(chunk)) return
      bits[chunk >> 3] = (bits[chunk >> 3] ?? 0) | (1 << (chunk & 7))
      size += 1
    },
    has,
    get size() {
      return size
    },
    *runs(most) {
      for (let chunk = 0; chunk < chunks; chunk++) {
        if (!has(chunk)) continue
        const from = chunk
        while (chunk + 1 < chunks && chunk + 1 - from < most && has(chunk + 1)) chunk++
        yield { chunk: from, count: chunk + 1 - from }
      }
    },
  }
}
