// Will it fit, and may it be written? Asked before the source is frozen, because afterwards a refusal costs a session.

import { lstat, open, readdir, rm, statfs } from 'node:fs/promises'
import path from 'node:path'
import { Failure } from '../../shared/failures.ts'
import { formatSize } from '../../shared/quantities.ts'
import { storeFailure } from '../copy/image.ts'
import { CHUNK_SIZE, chunkCount } from '../plan.ts'
import type { Layout } from './layout.ts'
import { LINE } from './manifest.ts'
import { own, ownFolders, PRIVATE, type Ownership } from './ownership.ts'

/** A disk of which a new copy will be kept, as far as it matters for space. All in bytes. */
export interface DiskRoom {
  readonly target: string
  /** How the disk's new copy is made; `whole` has no older one to build on. */
  readonly method: 'whole' | 'reflink' | 'copy' | 'in-place'
  readonly size: number
  /** What the disk occupies on the source, when the source tells. */
  readonly allocated?: number | undefined
  /** The image that a new copy builds on: its length, and what it occupies (all of it, for a block device). */
  readonly basis?: { readonly size: number; readonly occupied: number } | undefined
  /** Whether the image itself is a block device, which takes nothing from the store. */
  readonly device?: boolean
}

/** Kept free beyond what is known: definitions, history, folders, and what the guest allocates meanwhile. */
export const RESERVE = 64 * 1024 * 1024
/** Per disk: image, manifest, record. Per generation: definitions, generation.json, folders, and some more. */
const FILES_PER_DISK = 3
const FILES = 16

/** The most bytes that a new copy of one disk adds to the store, were every chunk of it changed. Pure. */
export function worstOf({ method, size, allocated, basis, device = false }: DiskRoom): number {
  const changed = Math.min(size, allocated ?? size)
  const manifest = chunkCount(size) * LINE
  const { occupied = 0, size: before = 0 } = basis ?? {}
  const held = Math.min(before, occupied)
  switch (method) {
    case 'whole':
      return manifest + (device ? 0 : changed)
    case 'reflink':
      return manifest + changed
    case 'copy':
      // Copied first, patched then, and cut to its size at the end.
      return manifest + Math.max(held, Math.min(size, held + changed))
    case 'in-place': {
      const grown = device ? 0 : Math.min(changed, Math.max(0, size - held))
      // What comes is staged, what it replaces is kept, and the image may lose its holes.
      return manifest + changed + held + grown
    }
  }
}

/**
 * Refuses a pull that would not fit if every chunk had changed. @param reclaim frees what an interrupted pull left, which is
 * given up only when the space is needed. @throws Failure SPACE with the numbers, disk by disk
 */
export async function checkRoom(
  layout: Layout,
  disks: readonly DiskRoom[],
  reclaim?: () => Promise<unknown>,
): Promise<void> {
  const needed = disks.reduce((sum, disk) => sum + worstOf(disk), RESERVE)
  const files = disks.length * FILES_PER_DISK + FILES
  const parts = disks.map(disk => `${disk.target} (${disk.method}) ${formatSize(worstOf(disk))}`)
  const what = `a pull that changes everything needs ${formatSize(needed)}: ${parts.join(', ')}, reserve ${formatSize(RESERVE)}`
  const staged = reclaim ? await occupiedBy(layout.staging) : 0
  const { free } = await freeIn(layout.staging)
  if (reclaim && free < needed && free + staged >= needed) {
    await reclaim()
    await untilFree(layout.staging, needed)
  }
  await checkFree(layout.staging, needed, files, what)
}

/** @param what says who needs how much. @throws Failure SPACE with the numbers; STANDBY_IO */
export async function checkFree(
  dir: string,
  bytes: number,
  files: number,
  what: string,
): Promise<void> {
  const { free, inodes } = await freeIn(dir)
  if (free < bytes) throw new Failure('SPACE', `${dir}: ${formatSize(free)} free, but ${what}`)
  if (inodes < files)
    throw new Failure(
      'SPACE',
      `${dir}: its file system has room for ${inodes} more files, but ${files} are needed`,
      { remedy: 'remove files there: df -i shows how many it can have' },
    )
}

/** Bytes and inodes that are free for us; inodes are endless where the file system makes them as needed. */
async function freeIn(dir: string): Promise<{ free: number; inodes: number }> {
  try {
    const { bavail, bsize, files, ffree } = await statfs(dir)
    return { free: bavail * bsize, inodes: files === 0 ? Infinity : ffree }
  } catch (error) {
    throw storeFailure(dir, error)
  }
}

/** Some file systems free a removed file's space only a moment later. */
async function untilFree(dir: string, bytes: number): Promise<void> {
  for (let tries = 0; tries < 20 && (await freeIn(dir)).free < bytes; tries++)
    await new Promise(resolve => setTimeout(resolve, 100))
}

/** Bytes that everything under a folder occupies; what vanishes meanwhile counts as nothing. */
export async function occupiedBy(dir: string): Promise<number> {
  const names = await readdir(dir, { recursive: true }).catch(() => [])
  const all = await Promise.all(
    names.map(name => lstat(path.join(dir, name)).catch(() => undefined)),
  )
  return all.reduce((sum, one) => sum + (one?.blocks ?? 0) * 512, 0)
}

/** The most bytes that a copy of an image takes: every chunk whose digest is not that of zeros, whole. @param nonZero chunks */
export const bytesOf = (nonZero: number, size: number): number =>
  Math.min(size, nonZero * CHUNK_SIZE)

/**
 * Makes, owns, fsyncs and removes a file in each of the clone's folders, and owns the folders: what is not allowed is known
 * before anything is copied. Only under the clone's lock. @throws Failure STANDBY_IO or SPACE with the folder
 */
export async function checkWritable(layout: Layout, ownership: Ownership = PRIVATE): Promise<void> {
  for (const dir of [layout.dir, layout.staging, layout.generations]) {
    // One name, so that what a killed run left is found again.
    const probe = path.join(dir, '.probe')
    try {
      const handle = await open(probe, 'w', 0o600)
      await handle.close()
      await own(probe, ownership)
      await rm(probe)
    } catch (error) {
      await rm(probe, { force: true }).catch(() => undefined)
      throw unwritable(dir, error, ownership)
    }
  }
  await ownFolders(layout, ownership)
}

function unwritable(dir: string, thrown: unknown, { uid, gid }: Ownership): Failure {
  const cause = thrown instanceof Failure ? thrown.cause : thrown
  const { code = '', syscall } = cause as NodeJS.ErrnoException
  if (syscall !== 'fchown') return storeFailure(dir, cause)
  const whom = [uid === undefined ? [] : `user ${uid}`, gid === undefined ? [] : `group ${gid}`]
  return new Failure(
    'STANDBY_IO',
    `${dir}: files in it cannot be given to ${whom.flat().join(' and ')} (${code})`,
    { cause, remedy: 'run as root, or remove ownership from the configuration' },
  )
}
