// Which chunks of a disk are to be got, and what each must be: all, or those whose digest on the source is another than
// that of what the clone has.

import { readDigests } from '../store/manifest.ts'

export interface Wanted {
  readonly chunk: number
  /** The source's digest; undefined when it was not asked. */
  readonly expected?: string
}

/** Digests looked at together: those of 256 MiB of the source's disk. */
const BATCH = 256

/** Every chunk, whatever the clone has. */
export async function* everyChunk(chunks: number): AsyncGenerator<Wanted, void> {
  // Several slots ask at once; a generator that awaits nothing still gives each its own.
  for (let chunk = 0; chunk < chunks; chunk++) yield await Promise.resolve({ chunk })
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
