// Writing one image: neighbours that wait go out as one write, past the page cache where that is possible.

import type { FileHandle } from 'node:fs/promises'

/** Writes all of `bytes` at `offset`; resolves when they are written. Rejects with the file system's errno error. */
export type Write = (bytes: Uint8Array, offset: number) => Promise<void>

interface Piece {
  readonly bytes: Uint8Array
  readonly offset: number
}
interface Waiting extends Piece {
  readonly resolve: () => void
  readonly reject: (error: unknown) => void
}

/** O_DIRECT wants lengths in whole blocks; 4 KiB suits every disk. */
const BLOCK = 4096
/** Pieces in one write: 8 MiB of chunks, long enough for any medium. */
const MAX_RUN = 8

/**
 * One write at a time: ext4 lets writes to new blocks of a file take turns anyway, and threads that wait for their turn
 * are lost to hashing. What comes meanwhile waits, and then goes out in one.
 * @param direct the same file opened with O_DIRECT, which wants page-aligned bytes; else `buffered` again
 */
export function writer(buffered: FileHandle, direct: FileHandle): Write {
  let waiting: Waiting[] = []
  let writing = false

  const writeWaiting = async (): Promise<void> => {
    if (writing) return
    writing = true
    while (waiting.length > 0) {
      waiting.sort((a, b) => a.offset - b.offset)
      const run = waiting.slice(0, runLength(waiting))
      waiting = waiting.slice(run.length)
      try {
        await writeRun(buffered, direct, run)
        for (const { resolve } of run) resolve()
      } catch (error) {
        for (const { reject } of run) reject(error)
      }
    }
    writing = false
  }

  return (bytes, offset) =>
    new Promise((resolve, reject) => {
      waiting.push({ bytes, offset, resolve, reject })
      void writeWaiting()
    })
}

/** How many of the first pieces follow each other without a gap. */
function runLength(pieces: readonly Piece[]): number {
  const last = pieces.findIndex(({ bytes, offset }, at) => {
    return at + 1 === MAX_RUN || pieces[at + 1]?.offset !== offset + bytes.length
  })
  return last + 1
}

async function writeRun(
  buffered: FileHandle,
  direct: FileHandle,
  run: readonly Piece[],
): Promise<void> {
  const start = run[0]?.offset ?? 0
  const end = run.reduce((sum, { bytes }) => sum + bytes.length, start)
  let handle = (end - start) % BLOCK === 0 ? direct : buffered
  for (let at = start; at < end;) {
    try {
      at += (await handle.writev(from(run, at), at)).bytesWritten
    } catch (error) {
      // A short direct write leaves an unaligned rest, and some file systems refuse O_DIRECT only here.
      if (handle === buffered || (error as NodeJS.ErrnoException).code !== 'EINVAL') throw error
      handle = buffered
    }
  }
}

/** What of a run lies at `start` and after it. */
function from(run: readonly Piece[], start: number): Uint8Array[] {
  return run
    .filter(({ bytes, offset }) => offset + bytes.length > start)
    .map(({ bytes, offset }) => bytes.subarray(Math.max(0, start - offset)))
}
