// Locks that the kernel frees when the holder dies, however it dies.

import { spawnSync } from 'node:child_process'
import { closeSync, constants, ftruncateSync, openSync, readFileSync, writeSync } from 'node:fs'
import { Failure } from '../failures.ts'

/**
 * Takes an exclusive flock(2) on a file and writes who holds it into it.
 * @returns a function that frees it, or the text of the present holder
 */
export function tryLock(file: string, holder: string): (() => void) | { heldBy: string } {
  const fd = openSync(file, constants.O_RDWR | constants.O_CREAT, 0o600)
  // The lock belongs to the open file, so it outlives flock(1) and lasts as long as our descriptor.
  const locked = spawnSync('flock', ['-n', '3'], { stdio: ['ignore', 'ignore', 'inherit', fd] })
  if (locked.status !== 0) {
    closeSync(fd)
    if (locked.status !== 1)
      throw new Failure('INTERNAL', `flock ${file}: ${locked.error?.message ?? 'failed'}`)
    return { heldBy: readFileSync(file, 'utf8').split('\n')[0] || 'another process' }
  }
  try {
    // Over what is there, so that a full file system, where locks are needed to free some of it, has room for it.
    ftruncateSync(fd, writeSync(fd, `${holder}\n`, 0))
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error
  }
  return () => closeSync(fd)
}
