// Locks that the kernel frees when the holder dies, however it dies.

import { closeSync, ftruncateSync, openSync, readFileSync, writeSync } from 'node:fs'
import { execaSync } from 'execa'

/**
 * Takes an exclusive flock(2) on a file and writes who holds it into it.
 * @returns a function that frees it, or the text of the present holder
 */
export function tryLock(file: string, holder: string): (() => void) | { heldBy: string } {
  const fd = openSync(file, 'a+', 0o600)
  const locked = execaSync('flock', ['-n', '3'], {
    stdio: ['ignore', 'ignore', 'inherit', fd],
    reject: false,
  })
  if (locked.exitCode !== 0) {
    closeSync(fd)
    return { heldBy: readFileSync(file, 'utf8').trim() || 'another process' }
  }
  ftruncateSync(fd)
  writeSync(fd, `${holder}\n`)
  return () => closeSync(fd)
}
