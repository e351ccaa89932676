// Files that must survive a power cut: written beside, fsynced, renamed, directory fsynced.

import { open, rename } from 'node:fs/promises'
import path from 'node:path'

/** fsync(2) of a file or directory. */
export async function fsyncPath(file: string): Promise<void> {
  const handle = await open(file, 'r')
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}

/** Replaces a file atomically and durably. @param mode of the new file */
export async function writeDurably(
  file: string,
  content: string | Uint8Array,
  mode = 0o644,
): Promise<void> {
  const beside = `${file}.new`
  const handle = await open(beside, 'w', mode)
  try {
    await handle.writeFile(content)
    await handle.sync()
  } finally {
    await handle.close()
  }
  await rename(beside, file)
  await fsyncPath(path.dirname(file))
}

/** Appends to a file and fsyncs it, all of it or nothing; the directory too, so that a new file's name survives. */
export async function appendDurably(file: string, content: string): Promise<void> {
  const handle = await open(file, 'a', 0o644)
  const { size } = await handle.stat()
  try {
    await handle.writeFile(content)
    await handle.sync()
  } catch (error) {
    // A half of it would become the beginning of what is appended next.
    await handle.truncate(size)
    throw error
  } finally {
    await handle.close()
  }
  await fsyncPath(path.dirname(file))
}
