// How sshd finds this program: by its bare name when that is on the PATH that sshd gives, else by absolute paths.

import { constants } from 'node:fs'
import { access } from 'node:fs/promises'
import path from 'node:path'
import { hookProgram } from '../nbd-server/config.ts'

/** On every sshd's default PATH, for root and for others (_PATH_STDPATH, SUPERUSER_PATH). */
const SSHD_PATH = ['/usr/local/bin', '/usr/bin', '/bin']

/** argv of clone-server for a forced command. Its first line asks env(1) for node, so that must be found as well. */
export async function programWords(directories: readonly string[] = SSHD_PATH): Promise<string[]> {
  const [program, node] = await Promise.all(
    ['clone-server', 'node'].map(name => isThere(directories, name)),
  )
  return program && node ? ['clone-server'] : hookProgram()
}

async function isThere(directories: readonly string[], name: string): Promise<boolean> {
  for (const directory of directories) {
    const file = path.join(directory, name)
    const runs = await access(file, constants.X_OK).then(
      () => true,
      () => false,
    )
    if (runs) return true
  }
  return false
}
