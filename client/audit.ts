// The audit of a tracked pull: some of what the source calls unchanged is hashed on both sides, because a bitmap can lie.

import { CHUNK_SIZE, chunkCount, chunkLength } from '../shared/chunks.ts'
import type { GrainSet } from '../shared/grain-set.ts'
import { zeroDigest } from '../shared/zeros.ts'
import { readDigests } from './store/manifest.ts'

/** At least so many chunks, and one of so many. */
const LEAST = 10
const ONE_OF = 1000
/** Manifest lines read at once. */
const BATCH = 1024

/** @returns a number in [0, 1) */
export type Dice = () => number

/**
 * Which chunks are audited: a random sample of the clean ones, and the last clean one that is not zero, because a disk that
 * shrank and grew back lost its end with no bitmap the wiser.
 * @param lines the digests of some chunks in a row of what the clone holds
 */
export function sampleOf(
  changed: GrainSet,
  lines: (chunk: number, count: number) => readonly string[],
  dice: Dice,
): number[] {
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

/**
 * Compares a sample with the source.
 * @param was the manifest of what the clone holds. @param ask the source's digests of some chunks in a row
 * @returns the first chunk that the source has otherwise although nothing is said to have changed there
 */
export async function audit(
  changed: GrainSet,
  was: number,
  ask: (chunk: number, count: number) => Promise<readonly string[]>,
  dice: Dice,
): Promise<{ audited: number; lie?: number }> {
  const sample = sampleOf(changed, (chunk, count) => readDigests(was, chunk, count), dice)
  for (const chunk of sample) {
    const [theirs] = await ask(chunk, 1)
    if (theirs !== readDigests(was, chunk, 1)[0]) return { audited: sample.length, lie: chunk }
  }
  return { audited: sample.length }
}
