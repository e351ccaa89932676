// A record: the chunks of a generation's disk that differ from another generation's, in a sparse file of their own. Which
// ones they are is not written anywhere: they are the chunks whose lines in the two manifests differ.

import { readdir } from 'node:fs/promises'
import { isRecoveryPointId } from '../../shared/names.ts'
import { readDigests } from './manifest.ts'
import { imageName } from './layout.ts'

/** The file that holds `disk` as it differs from generation `against`. */
export const recordName = (disk: { target: string; format: string }, against: string): string =>
  `${imageName(disk)}.from-${against}`

/** The generations that a folder's records of `disk` are against, by name of the folder; usually one, or none. */
export async function recordsOf(
  dir: string,
  disk: { target: string; format: string },
): Promise<string[]> {
  const start = recordName(disk, '')
  const names = await readdir(dir)
  return names
    .filter(name => name.startsWith(start))
    .map(name => name.slice(start.length))
    .filter(isRecoveryPointId)
    .sort()
}

/** Lines that are compared at once: 65 KiB of each manifest. */
const BATCH = 1024

/** Consecutive chunks. */
export interface Run {
  readonly chunk: number
  readonly count: number
}

/**
 * The chunks, in order, whose lines differ in two open manifests; a line that only one of them has counts as different.
 * @param chunks the lines to look at, from the first. @param most chunks in one run
 */
export function* differing(
  a: number,
  b: number,
  chunks: number,
  most: number = Infinity,
): Generator<Run> {
  let start = 0
  let count = 0
  for (let at = 0; at < chunks; at += BATCH) {
    const lines = Math.min(BATCH, chunks - at)
    const [left, right] = [readDigests(a, at, lines), readDigests(b, at, lines)]
    for (let i = 0; i < lines; i++) {
      if (left[i] === right[i] && left[i] !== '') continue
      if (count > 0 && (start + count !== at + i || count >= most)) {
        yield { chunk: start, count }
        count = 0
      }
      if (count === 0) start = at + i
      count++
    }
  }
  if (count > 0) yield { chunk: start, count }
}
