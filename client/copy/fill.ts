// One chunk read from an open file, by whoever hashes it next: so it may come from the page cache.

import { read } from 'node:fs'
import { promisify } from 'node:util'
import { CHUNK_SIZE } from '../plan.ts'

const readAt = promisify(read)

/** Fills `bytes` from where a chunk begins. @returns false when the file's end or the medium does not give them */
export async function fill(fd: number, chunk: number, bytes: Uint8Array): Promise<boolean> {
  const start = chunk * CHUNK_SIZE
  for (let done = 0; done < bytes.length;) {
    const nothing = { bytesRead: 0 }
    const read = readAt(fd, bytes, done, bytes.length - done, start + done)
    const { bytesRead } = await read.catch(() => nothing)
    if (bytesRead === 0) return false
    done += bytesRead
  }
  return true
}
