// Media for tests of stores: file systems and block devices of their own, gone when the test is, however it ends: `npm test`
// runs these tests in a mount namespace of their own, and a loop device ends with the last who has it open.

import { execFileSync } from 'node:child_process'
import { openSync, closeSync } from 'node:fs'
import { mkdtemp, rm, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import type { Test } from 'tap'

export type FileSystem = 'xfs' | 'ext4'

const sh = (program: string, ...args: string[]): string =>
  execFileSync(program, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] }).trim()

/** Mounts a fresh file system. @param mib its size; XFS wants 300 at least @returns the mounted folder */
export async function aMedium(t: Test, type: FileSystem, mib = 512): Promise<string> {
  const dir = await mkdtemp(path.join(tmpdir(), 'nbd-clone-medium-'))
  const image = path.join(dir, 'image')
  const mounted = path.join(dir, 'mounted')
  await writeFile(image, '')
  await truncate(image, mib * 1024 * 1024)
  sh(`mkfs.${type}`, '-q', image)
  sh('mkdir', mounted)
  sh('mount', '-o', 'loop', image, mounted)
  await rm(image)
  t.teardown(async () => {
    sh('umount', mounted)
    await rm(dir, { recursive: true })
  })
  return mounted
}

/** A blank block device of `size` bytes. */
export async function aDevice(t: Test, size: number): Promise<string> {
  const dir = await mkdtemp(path.join(tmpdir(), 'nbd-clone-device-'))
  const image = path.join(dir, 'image')
  await writeFile(image, '')
  await truncate(image, size)
  const device = sh('losetup', '--find', '--show', image)
  const held = openSync(device, 'r')
  // Detached already, the device lives until nobody has it open any more.
  sh('losetup', '--detach', device)
  await rm(dir, { recursive: true })
  t.teardown(() => closeSync(held))
  return device
}
