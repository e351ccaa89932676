// Which processes have a file open, read from /proc: the witness that no lock can replace.

import { readdir, readlink, stat, readFile } from 'node:fs/promises'

export interface Opener {
  readonly pid: number
  readonly command: string
  readonly writes: boolean
}

const WRITE_FLAGS = 0o3

/** Every process of this host that has the file (same device and inode) open. A vanished file has no openers. */
export async function openersOf(file: string): Promise<Opener[]> {
  const wanted = await stat(file).catch(() => undefined)
  if (!wanted) return []
  const pids = (await readdir('/proc')).filter(name => /^\d+$/.test(name))
  const found = await Promise.all(pids.map(pid => opens(pid, wanted)))
  return found.filter(opener => opener !== undefined)
}

async function opens(
  pid: string,
  wanted: { dev: number; ino: number; rdev: number },
): Promise<Opener | undefined> {
  const fds = await readdir(`/proc/${pid}/fd`).catch(() => [])
  for (const fd of fds) {
    const link = `/proc/${pid}/fd/${fd}`
    const target = await readlink(link).catch(() => '')
    if (!target.startsWith('/')) continue
    const found = await stat(link).catch(() => undefined)
    const same = found && found.dev === wanted.dev && found.ino === wanted.ino
    const sameDevice = found && wanted.rdev !== 0 && found.rdev === wanted.rdev
    if (!same && !sameDevice) continue
    const info = await readFile(`/proc/${pid}/fdinfo/${fd}`, 'utf8').catch(() => '')
    const flags = parseInt(/^flags:\s*(\d+)/m.exec(info)?.[1] ?? '0', 8)
    const command = (await readFile(`/proc/${pid}/comm`, 'utf8').catch(() => '?')).trim()
    return { pid: Number(pid), command, writes: (flags & WRITE_FLAGS) !== 0 }
  }
  return undefined
}
