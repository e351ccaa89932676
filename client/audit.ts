// The audit of a tracked pull, because a bitmap can lie and a medium can forget: some chunks that the source calls unchanged are
// hashed on both sides and compared with the manifest; some of which it calls only a part changed, with what they have become.

import { createHash } from 'node:crypto'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { CHUNK_SIZE, chunkCount, chunkLength } from '../shared/chunks.ts'
import { Failure } from '../shared/failures.ts'
import type { GrainSet } from '../shared/grain-set.ts'
import { zeroDigest } from '../shared/zeros.ts'
import { fill } from './copy/fill.ts'
import { readDigests } from './store/manifest.ts'

/** At least so many chunks, and one of so many. */
const LEAST = 10
const ONE_OF = 1000
/** Of those of which only some changed, in which a record is likelier to lack something. */
const PARTLY_ONE_OF = 100
/** Manifest lines read at once. */
const BATCH = 1024

/** @returns a number in [0, 1) */
export type Dice = () => number

/**
 * Which chunks are audited: a random sample of the clean ones, and the last clean one that is not zero, because a disk that
 * shrank and grew back lost its end with no bitmap the wiser.
 * @param lines the digests of some chunks in a row of what the clone holds
 */
export async function sampleOf(
  changed: GrainSet,
  lines: (chunk: number, count: number) => readonly string[],
  dice: Dice,
): Promise<number[]> {
  const chunks = chunkCount(changed.size)
  const isClean = (chunk: number): boolean =>
    !changed.touches(chunk * CHUNK_SIZE, chunkLength(changed.size, chunk))
  const sample = new Set<number>()
  const wanted = Math.max(LEAST, Math.ceil(chunks / ONE_OF))
  // A few tries more than wanted: where nearly all has changed, there is little to audit.
  for (let tries = 0; tries < 4 * wanted && sample.size < wanted; tries++) {
    const chunk = Math.floor(dice() * chunks)
    if (isClean(chunk)) sample.add(chunk)
  }
  for (let end = chunks; end > 0; end -= BATCH) {
    const first = Math.max(0, end - BATCH)
    // A disk may have millions of chunks, and the lease must be renewed meanwhile.
    await nextTurn()
    const digests = lines(first, end - first)
    const last = digests.findLastIndex(
      (digest, at) =>
        digest !== zeroDigest(chunkLength(changed.size, first + at)) && isClean(first + at),
    )
    if (last === -1) continue
    sample.add(first + last)
    break
  }
  return [...sample].sort((a, b) => a - b)
}

/** The chunks of which only some changed, in order: where the runs of changes begin and end. */
function partlyChanged(changed: GrainSet): number[] {
  const found = new Set<number>()
  for (const [offset, length] of changed.extents(0)) {
    const end = offset + length
    for (const chunk of [Math.floor(offset / CHUNK_SIZE), Math.floor((end - 1) / CHUNK_SIZE)]) {
      const first = chunk * CHUNK_SIZE
      if (offset > first || end < first + chunkLength(changed.size, chunk)) found.add(chunk)
    }
  }
  return [...found]
}

/** A sample of those, and always the last: what else was lost of a disk's end lies in the same chunk. */
export function partlyChangedSample(changed: GrainSet, dice: Dice): number[] {
  const partly = partlyChanged(changed)
  const wanted = Math.max(LEAST, Math.ceil(partly.length / PARTLY_ONE_OF))
  const sample = new Set(partly.slice(-1))
  for (let tries = 0; tries < 4 * wanted && sample.size < wanted; tries++) {
    const chunk = partly[Math.floor(dice() * partly.length)]
    if (chunk !== undefined) sample.add(chunk)
  }
  return [...sample].sort((a, b) => a - b)
}

/** The source's own digests of some chunks in a row, read where it sees holes too. */
export type Ask = (chunk: number, count: number) => Promise<readonly string[]>

/** Digests that the source has of some chunks, asked one by one but not one after the other. */
export async function digestsOf(chunks: readonly number[], ask: Ask): Promise<Map<number, string>> {
  const found = await Promise.all(
    chunks.map(async chunk => [chunk, (await ask(chunk, 1))[0] ?? ''] as const),
  )
  return new Map(found)
}

/**
 * Compares a sample with the source.
 * @param was the manifest of what the clone holds
 * @returns the first chunk that the source has otherwise although nothing is said to have changed there
 */
export async function audit(
  changed: GrainSet,
  was: number,
  ask: Ask,
  dice: Dice,
): Promise<{ sample: readonly number[]; lie?: number }> {
  const sample = await sampleOf(changed, (chunk, count) => readDigests(was, chunk, count), dice)
  const theirs = await digestsOf(sample, ask)
  const lie = sample.find(chunk => theirs.get(chunk) !== readDigests(was, chunk, 1)[0])
  return { sample, ...(lie !== undefined && { lie }) }
}

/**
 * The other side of the audit: which chunks of a sample the clone's own image has otherwise than its manifest.
 * @param image open for reading. @param was its manifest
 */
export async function rottenOf(
  sample: readonly number[],
  size: number,
  image: number,
  was: number,
): Promise<number[]> {
  const bytes = Buffer.alloc(CHUNK_SIZE)
  const rotten: number[] = []
  for (const chunk of sample) {
    const own = bytes.subarray(0, chunkLength(size, chunk))
    const isThere = await fill(image, chunk, own)
    const digest = createHash('sha256').update(own).digest('hex')
    if (!isThere || digest !== readDigests(was, chunk, 1)[0]) rotten.push(chunk)
  }
  return rotten
}

/** What the source recorded is not all that changed. The pull in which it shows publishes nothing. */
export class TrackingLie extends Failure {
  constructor(target: string, chunk: number) {
    super(
      'INTEGRITY',
      `disk ${target}: chunk ${chunk} (byte ${chunk * CHUNK_SIZE}) is not what the source has, although all was read of it that the source recorded to have changed`,
      { remedy: 'pull again: from now on everything is compared, until --trust-tracking' },
    )
  }
}
