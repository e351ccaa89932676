// Which chunks of a disk are to be got, and what each must be: all, those whose digest on the source is another than that of
// what the clone has, or those that the source recorded to have changed.

import { setImmediate as nextTurn } from 'node:timers/promises'
import { CHUNK_SIZE, chunkCount, chunkLength } from '../../shared/chunks.ts'
import { GRAIN, type Extent, type GrainSet } from '../../shared/grain-set.ts'
import { readDigests } from '../store/manifest.ts'

export interface Wanted {
  readonly chunk: number
  /** The source's digest; undefined when it was not asked. */
  readonly expected?: string
  /** It has no data on the source, so it reads as zeros. */
  readonly hole?: boolean
  /** Only some of it changed: the rest is what the basis has, if that still has this digest. */
  readonly patch?: Patch
}

export interface Patch {
  /** What changed, as offsets in the disk and lengths. */
  readonly extents: readonly Extent[]
  /** The chunk's digest in the basis. */
  readonly before: string
}

/** Digests looked at together: those of 256 MiB of the source's disk. */
const BATCH = 256
/** A line for a chunk whose own is yet to be written. */
const NO_DIGEST = '0'.repeat(64)

/** Every chunk, whatever the clone has. @param data where the source has data, if that is known */
export async function* everyChunk(
  size: number,
  data: GrainSet | undefined,
): AsyncGenerator<Wanted, void> {
  const chunks = chunkCount(size)
  for (let chunk = 0; chunk < chunks; chunk++) {
    // Holes are passed over without a wait, and the lease must be renewed meanwhile.
    if (chunk % BATCH === 0) await nextTurn()
    yield { chunk, hole: isHole(data, size, chunk) }
  }
}

const isHole = (data: GrainSet | undefined, size: number, chunk: number): boolean =>
  data?.touches(chunk * CHUNK_SIZE, chunkLength(size, chunk)) === false

/**
 * What changed since the basis; the digests of all else are taken from there.
 * @param changed in grains. @param data where the source has data, if that is known. @param was the manifest of the basis
 * @param promised the source's digests of some chunks of which only some changed
 * @param record writes digests into the new manifest. @param onSame told of chunks that need not be got
 */
export async function* changedChunks(
  changed: GrainSet,
  data: GrainSet | undefined,
  promised: ReadonlyMap<number, string>,
  was: number,
  record: (chunk: number, digests: readonly string[]) => void,
  onSame: (chunk: number) => void,
): AsyncGenerator<Wanted, void> {
  const { size } = changed
  const chunks = chunkCount(size)
  for (let first = 0; first < chunks; first += BATCH) {
    const before = readDigests(was, first, Math.min(BATCH, chunks - first))
    record(
      first,
      before.map(digest => digest || NO_DIGEST),
    )
    // As in everyChunk.
    await nextTurn()
    for (const [at, digest] of before.entries()) {
      const chunk = first + at
      const offset = chunk * CHUNK_SIZE
      const length = chunkLength(size, chunk)
      const extents = [...changed.extents(offset, offset + length)]
      if (digest === '') yield { chunk }
      else if (extents.length === 0) onSame(chunk)
      else if (isHole(data, size, chunk)) yield { chunk, hole: true }
      // A last chunk of one grain may be marked for its rot alone, and is looked at before it is got.
      else if (extents[0]?.[1] === length && length > GRAIN) yield { chunk }
      else {
        const patch = { extents, before: digest }
        const expected = promised.get(chunk)
        if (expected !== undefined) record(chunk, [expected])
        yield expected === undefined ? { chunk, patch } : { chunk, patch, expected }
      }
    }
  }
}

/**
 * Writes the source's digests into the new manifest and gives the chunks that differ from the basis.
 * @param ask the source's digests of some chunks in a row. @param record writes them into the manifest
 * @param was the manifest of the basis; undefined when there is none, or it cannot be trusted
 * @param onSame told of chunks that need not be got
 */
export async function* differingChunks(
  chunks: number,
  ask: (chunk: number, count: number) => Promise<readonly string[]>,
  record: (chunk: number, digests: readonly string[]) => void,
  was: number | undefined,
  onSame: (chunk: number) => void,
): AsyncGenerator<Wanted, void> {
  for (let first = 0; first < chunks; first += BATCH) {
    const count = Math.min(BATCH, chunks - first)
    const digests = await ask(first, count)
    record(first, digests)
    const before = was === undefined ? [] : readDigests(was, first, count)
    for (const [at, expected] of digests.entries())
      if (before[at] === expected) onSame(first + at)
      else yield { chunk: first + at, expected }
  }
}
