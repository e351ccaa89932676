// What is to be done to an image where a part of a chunk goes: bytes are written, and zeros between them given back.

import type { Extent } from '../../shared/grain-set.ts'

export interface Piece {
  readonly kind: 'data' | 'zeros'
  /** In the chunk, like those of the part. */
  readonly offset: number
  readonly length: number
}

/** @param part of the chunk. @param data where the chunk has data, in order; the rest of it is zeros */
export function* pieces([start, length]: Extent, data: readonly Extent[]): Generator<Piece> {
  const end = start + length
  let at = start
  for (const [offset, count] of data) {
    const [from, to] = [Math.max(offset, at), Math.min(offset + count, end)]
    if (to <= from) continue
    if (from > at) yield { kind: 'zeros', offset: at, length: from - at }
    yield { kind: 'data', offset: from, length: to - from }
    at = to
  }
  if (at < end) yield { kind: 'zeros', offset: at, length: end - at }
}
