// Opening an image to be written where it lies: a file, or a block device that nobody else may use meanwhile.

import { constants } from 'node:fs'
import { open, readdir, readFile, realpath, stat, type FileHandle } from 'node:fs/promises'
import path from 'node:path'
import { Failure } from '../../shared/failures.ts'
import { storeFailure } from '../copy/image.ts'

/**
 * Opens a file, or a block device exclusively: while it is open, nobody can mount it or use it for something else.
 * @throws Failure UNSAFE naming who has the device; STANDBY_IO with the path
 */
export async function openToWrite(file: string): Promise<FileHandle> {
  try {
    const isDevice = (await stat(file)).isBlockDevice()
    return await open(file, constants.O_RDWR | (isDevice ? constants.O_EXCL : 0))
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EBUSY') throw storeFailure(file, error)
    const device = await realpath(file)
    const by = (await claimants(device)).join('; ') || 'somebody'
    throw new Failure('UNSAFE', `${device} is in use: ${by}`, {
      cause: error,
      remedy: 'end that use first (umount, swapoff, vgchange -an, losetup -d, virsh destroy)',
    })
  }
}

/** Who the kernel keeps a device for, each in a few words. @param device its real path */
async function claimants(device: string): Promise<string[]> {
  const name = path.basename(device)
  const parts = await readdir(`/sys/class/block/${name}`).catch(() => [])
  const names = [name, ...parts.filter(part => part.startsWith(name))]
  const found: string[] = []
  for (const one of names) {
    for (const holder of await readdir(`/sys/class/block/${one}/holders`).catch(() => []))
      found.push(`${await nameOf(holder)} lies on ${one}`)
    for (const table of ['/proc/mounts', '/proc/swaps']) {
      const lines = (await readFile(table, 'utf8').catch(() => '')).split('\n')
      for (const [from, where] of lines.map(line => line.split(' ')))
        if (from?.startsWith('/') && (await realpath(from).catch(() => from)) === `/dev/${one}`)
          found.push(table === '/proc/mounts' ? `mounted at ${String(where)}` : 'swap')
    }
  }
  return found
}

/** A device mapper's own name for its device, else the kernel's. */
async function nameOf(holder: string): Promise<string> {
  const mapped = await readFile(`/sys/class/block/${holder}/dm/name`, 'utf8').catch(() => '')
  return mapped.trim() || holder
}
