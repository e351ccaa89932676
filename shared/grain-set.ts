// Which parts of a disk have some property, in grains of 64 KiB, a bit each: 2 MiB for a disk of 1 TiB.

/** Bytes. QEMU's dirty bitmaps are asked for in this granularity. */
export const GRAIN = 64 * 1024

/** Offset and length in bytes. */
export type Extent = readonly [offset: number, length: number]

export interface GrainSet {
  /** Bytes of the disk. */
  readonly size: number
  /** Adds every grain that the extent touches. @throws RangeError outside the disk */
  mark(offset: number, length: number): void
  /** Whether any grain of the extent is in the set. */
  touches(offset: number, length: number): boolean
  /** Bytes in the set. */
  bytes(): number
  /** In order, without neighbours, cut to `from` and to `end`, by default the disk's. */
  extents(from?: number, end?: number): Generator<Extent>
}

/** An empty set. @param size bytes of the disk */
export function grainSet(size: number): GrainSet {
  const grains = Math.ceil(size / GRAIN)
  const bits = new Uint8Array(Math.ceil(grains / 8))
  const has = (grain: number): boolean => ((bits[grain >> 3] ?? 0) & (1 << (grain & 7))) !== 0

  /** The first grain from `grain` on that is (not) in the set, at most `end`. */
  function next(grain: number, end: number, wanted: boolean): number {
    const skip = wanted ? 0 : 0xff
    while (grain < end)
      if ((grain & 7) === 0 && bits[grain >> 3] === skip) grain += 8
      else if (has(grain) === wanted) return grain
      else grain++
    return end
  }

  function* extents(from = 0, end = size): Generator<Extent> {
    const stop = Math.ceil(end / GRAIN)
    for (let at = next(Math.floor(from / GRAIN), stop, true); at < stop;) {
      const after = next(at, stop, false)
      const offset = Math.max(at * GRAIN, from)
      yield [offset, Math.min(after * GRAIN, end) - offset]
      at = next(after, stop, true)
    }
  }

  return {
    size,
    mark(offset, length) {
      if (offset < 0 || length < 0 || offset + length > size)
        throw new RangeError(`${length} bytes at ${offset} of a disk of ${size}`)
      const end = Math.ceil((offset + length) / GRAIN)
      for (let grain = Math.floor(offset / GRAIN); length > 0 && grain < end; grain++)
        bits[grain >> 3] = (bits[grain >> 3] ?? 0) | (1 << (grain & 7))
    },
    touches: (offset, length) => !(extents(offset, offset + length).next().done ?? false),
    bytes() {
      let sum = 0
      for (const [, length] of extents()) sum += length
      return sum
    },
    extents,
  }
}
