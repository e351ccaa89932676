// The manifest's format: one line of 64 hex digits per chunk. Lines have one width, so chunk n's line is at 65 n and
// nothing ever has to hold a whole manifest in memory, whatever the disk's size.

import { createHash } from 'node:crypto'
import { createReadStream, readSync, writeSync } from 'node:fs'
import { stat } from 'node:fs/promises'
import { Failure } from '../../shared/failures.ts'

/** 64 hex digits and a newline. */
export const LINE = 65

/** Writes the lines of consecutive chunks. @param digests hex, one per chunk */
export function writeDigests(fd: number, chunk: number, digests: readonly string[]): void {
  const lines = Buffer.from(digests.map(digest => `${digest}\n`).join(''), 'latin1')
  for (let done = 0; done < lines.length;)
    done += writeSync(fd, lines, done, lines.length - done, chunk * LINE + done)
}

/** Reads the digests of `count` chunks; a line that is missing or malformed comes back as ''. */
export function readDigests(fd: number, chunk: number, count: number): string[] {
  const lines = Buffer.alloc(count * LINE)
  for (let done = 0; done < lines.length;) {
    const got = readSync(fd, lines, done, lines.length - done, chunk * LINE + done)
    if (got === 0) break
    done += got
  }
  return Array.from({ length: count }, (_, at) => {
    const line = lines.toString('latin1', at * LINE, (at + 1) * LINE)
    return /^[0-9a-f]{64}\n$/.test(line) ? line.slice(0, -1) : ''
  })
}

/** The disk's digest: SHA-256 of the manifest file, hex. @throws Failure INTEGRITY when its length is not `chunks` lines */
export async function manifestDigest(file: string, chunks: number): Promise<string> {
  const { size } = await stat(file)
  if (size !== chunks * LINE)
    throw new Failure(
      'INTEGRITY',
      `${file}: ${size} bytes, but ${chunks} chunks need ${chunks * LINE}`,
    )
  const hash = createHash('sha256')
  for await (const part of createReadStream(file)) hash.update(part as Buffer)
  return hash.digest('hex')
}
