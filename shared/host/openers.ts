// Which processes have a file open, read from /proc: the witness that no lock can replace.

import { readdir, readlink, stat, readFile } from 'node:fs/promises'

export interface Opener {
  readonly pid: number
  readonly command: string
  /** With any of its descriptors. */
  readonly writes: boolean
}

const WRITE_FLAGS = 0o3

/** Every process of this host that has the file (same device and inode) open. A vanished file has no openers. */
export async function openersOf(file: string): Promise<Opener[]> {
  return (await openersOfEach([file])).get(file) ?? []
}

/** The same of many files, in one walk through /proc. @returns only files that somebody has open */
export async function openersOfEach(files: readonly string[]): Promise<Map<string, Opener[]>> {
  const wanted = new Map<string, string[]>()
  for (const file of files)
    for (const key of keysOf(await stat(file).catch(() => undefined)))
      wanted.set(key, [...(wanted.get(key) ?? []), file])
  const found = new Map<string, Opener[]>()
  if (wanted.size === 0) return found
  const pids = (await readdir('/proc')).filter(name => /^\d+$/.test(name))
  await Promise.all(
    pids.map(async pid => {
      for (const [file, opener] of await opensOf(pid, wanted))
        found.set(file, [...(found.get(file) ?? []), opener])
    }),
  )
  return found
}

/** Which of the files a process has open; undefined when that cannot be seen. */
export async function openedBy(
  pid: number,
  files: readonly string[],
): Promise<ReadonlySet<string> | undefined> {
  const isSeen = await readdir(`/proc/${pid}/fd`).catch(() => undefined)
  if (!isSeen) return undefined
  const openers = await openersOfEach(files)
  return new Set(files.filter(file => openers.get(file)?.some(one => one.pid === pid)))
}

/** By what an open file is known: its inode; a device by its number too, whatever node it was opened by. */
function keysOf(one: { dev: number; ino: number; rdev: number } | undefined): string[] {
  if (!one) return []
  const inode = `${one.dev}:${one.ino}`
  return one.rdev === 0 ? [inode] : [inode, `device ${one.rdev}`]
}

/** Which of the wanted files a process has open. */
async function opensOf(
  pid: string,
  wanted: ReadonlyMap<string, string[]>,
): Promise<Map<string, Opener>> {
  const opens = new Map<string, Opener>()
  const fds = await readdir(`/proc/${pid}/fd`).catch(() => [])
  for (const fd of fds) {
    const link = `/proc/${pid}/fd/${fd}`
    const target = await readlink(link).catch(() => '')
    if (!target.startsWith('/')) continue
    const keys = keysOf(await stat(link).catch(() => undefined))
    const files = new Set(keys.flatMap(key => wanted.get(key) ?? []))
    if (files.size === 0) continue
    const info = await readFile(`/proc/${pid}/fdinfo/${fd}`, 'utf8').catch(() => '')
    const flags = parseInt(/^flags:\s*(\d+)/m.exec(info)?.[1] ?? '0', 8)
    const command = (await readFile(`/proc/${pid}/comm`, 'utf8').catch(() => '?')).trim()
    for (const file of files) {
      const writes = (flags & WRITE_FLAGS) !== 0 || opens.get(file)?.writes === true
      opens.set(file, { pid: Number(pid), command, writes })
    }
  }
  return opens
}
