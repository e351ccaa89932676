// One disk of a generation compared with its manifest, wherever its bytes lie: in an image, or along a chain of records.

import { CHUNK_SIZE, chunkCount } from '../plan.ts'
import type { FileRun, View } from '../store/view.ts'
import { allOrFirstError } from './copy.ts'
import { storeFailure } from './image.ts'
import { isMediumError, pastCache, type Medium } from './medium.ts'
import type { Pool } from './pool.ts'
import type { BadChunk } from './worker.ts'

/** Chunks per step: few messages, and still a progress bar that moves. */
const BATCH = 16
/** Twice the threads, so that none waits for its next job. */
const UNDER_WAY = 8

/** A bad chunk, and where its bytes belong. */
export interface BadPlace extends BadChunk {
  readonly file: string
  /** Its offset in the file and in the disk. */
  readonly byte: number
}

export interface Checked {
  /** In order. */
  readonly bad: readonly BadPlace[]
  /** Files whose bytes may have come from the page cache, so that nothing is known of their medium. */
  readonly cached: readonly string[]
}

/**
 * Re-reads a whole disk. What cannot be read is bad; only what says nothing of the medium ends the check.
 * @throws the signal's reason; Failure STANDBY_IO with the path
 */
export async function check(
  view: View,
  pool: Pool,
  signal: AbortSignal,
  onProgress: (bytes: number) => void,
): Promise<Checked> {
  const { size } = view.disk
  const chunks = chunkCount(size)
  const bad: BadPlace[] = []
  const media = new Map<string, Promise<Medium>>()
  let next = 0
  let failed = false

  const mediumOf = ({ file, direct }: FileRun): Promise<Medium> => {
    const known = media.get(file) ?? pastCache(file, direct, pool.slots.at(-1), signal)
    media.set(file, known)
    return known
  }

  const checkRun = async (run: FileRun, slot: number): Promise<BadPlace[]> => {
    const { file, fd, chunk, count } = run
    const { direct } = await mediumOf(run)
    const { manifest } = view
    const job = { kind: 'check', slot, chunk, count, size, fd, direct, manifest } as const
    try {
      return (await pool.run(job)).bad.map(one => placed(one, file))
    } catch (error) {
      if (!isMediumError(error)) throw storeFailure(file, error)
      // An image's EIO is an answer, so this one is the manifest's.
      const why = (error as NodeJS.ErrnoException).code === 'EIO' ? 'no digest' : 'unreadable'
      if (count === 1) return [placed({ chunk, why }, file)]
      const each: BadPlace[] = []
      for (let at = chunk; at < chunk + count; at++)
        each.push(...(await checkRun({ ...run, chunk: at, count: 1 }, slot)))
      return each
    }
  }

  const useSlot = async (slot: number): Promise<void> => {
    while (next < chunks && !failed) {
      signal.throwIfAborted()
      const chunk = next
      const count = Math.min(BATCH, chunks - chunk)
      next += count
      for (const run of runsOf(view, chunk, count))
        bad.push(...('bad' in run ? run.bad : await checkRun(run, slot)))
      onProgress(Math.min(count * CHUNK_SIZE, size - chunk * CHUNK_SIZE))
    }
  }

  await allOrFirstError(
    Array.from({ length: UNDER_WAY }, (_, slot) => useSlot(slot)),
    () => (failed = true),
  )
  const cached: string[] = []
  for (const [file, medium] of media) if ((await medium).cached) cached.push(file)
  return { bad: bad.sort((a, b) => a.chunk - b.chunk), cached }
}

/** Where some chunks lie; those whose place an unreadable manifest hides are bad. */
function runsOf(view: View, chunk: number, count: number): (FileRun | { bad: BadPlace[] })[] {
  try {
    return view.runs(chunk, count)
  } catch (error) {
    const [file = view.manifestFile] = view.files
    if (!isMediumError(error)) throw storeFailure(view.manifestFile, error)
    const hidden = Array.from({ length: count }, (_, at) =>
      placed({ chunk: chunk + at, why: 'no digest' }, file),
    )
    return [{ bad: hidden }]
  }
}

const placed = (bad: BadChunk, file: string): BadPlace => ({
  ...bad,
  file,
  byte: bad.chunk * CHUNK_SIZE,
})
