// Locks that the kernel frees when the holder dies, however it dies.

import { spawnSync } from 'node:child_process'
import { closeSync, ftruncateSync, openSync, readFileSync, writeSync } from 'node:fs'
import { Failure } from '../failures.ts'

/**
 * Takes an exclusive flock(2) on a file and writes who holds it into it.
 * @returns a function that frees it, or the text of the present holder
 */
export function tryLock(file: string, holder: string): (() => void) | { heldBy: string } {
  const fd = openSync(file, 'a+', 0o600)
  // The lock belongs to the open file, so it outlives flock(1) and lasts as long as our descriptor.
  const locked = spawnSync('flock', ['-n', '3'], { stdio: ['ignore', 'ignore', 'inherit', fd] })
  if (locked.status !== 0) {
    closeSync(fd)
    if (locked.status !== 1)
      throw new Failure('INTERNAL', `flock ${file}: ${locked.error?.message ?? 'failed'}`)
    return { heldBy: readFileSync(file, 'utf8').trim() || 'another process' }
  }
  ftruncateSync(fd)
  writeSync(fd, `${holder}\n`)
  return () => closeSync(fd)
}
