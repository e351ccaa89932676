// Locks that the kernel frees when the holder dies, however it dies.

import { spawnSync } from 'node:child_process'
import {
  closeSync,
  constants,
  fstatSync,
  ftruncateSync,
  openSync,
  readdirSync,
  readFileSync,
  statSync,
  writeSync,
} from 'node:fs'
import { Failure } from '../failures.ts'

/** What is said when the text in the lock is not that of its present holder. */
const UNNAMED = 'another process'

/**
 * Takes an exclusive flock(2) on a file and writes who holds it into it.
 * @param holder one line. @returns a function that frees it, or the text of the present holder
 */
export function tryLock(file: string, holder: string): (() => void) | { heldBy: string } {
  const fd = openSync(file, constants.O_RDWR | constants.O_CREAT, 0o600)
  // The lock belongs to the open file, so it outlives flock(1) and lasts as long as our descriptor.
  const locked = spawnSync('flock', ['-n', '3'], { stdio: ['ignore', 'ignore', 'inherit', fd] })
  if (locked.status !== 0) {
    const { dev, ino } = fstatSync(fd)
    closeSync(fd)
    if (locked.status !== 1)
      throw new Failure('INTERNAL', `flock ${file}: ${locked.error?.message ?? 'failed'}`)
    return { heldBy: presentHolder(file, { dev, ino }) }
  }
  try {
    // Over what is there, so that a full file system, where locks are needed to free some of it, has room for it.
    ftruncateSync(fd, writeSync(fd, `${holder}\n${process.pid}\n`, 0))
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error
  }
  return () => closeSync(fd)
}

/** The text of whoever wrote it, if that process still has the lock open: a dead holder's text stays until the next one's. */
function presentHolder(file: string, lock: { dev: number; ino: number }): string {
  const [text = '', pid = ''] = readFileSync(file, 'utf8').split('\n')
  if (text === '' || !/^\d+$/.test(pid)) return UNNAMED
  return hasOpen(pid, lock) ? text : UNNAMED
}

function hasOpen(pid: string, { dev, ino }: { dev: number; ino: number }): boolean {
  try {
    return readdirSync(`/proc/${pid}/fd`).some(fd => {
      const open = statSync(`/proc/${pid}/fd/${fd}`, { throwIfNoEntry: false })
      return open?.dev === dev && open.ino === ino
    })
  } catch {
    return false
  }
}
