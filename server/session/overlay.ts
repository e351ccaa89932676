// An overlay as a file: what its header says, whether it holds anything, and when it may be deleted.

import { open, stat, unlink } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { z } from 'zod'
import { Failure } from '../../shared/failures.ts'
import { openersOf } from '../../shared/host/openers.ts'
import { reasonOf, run } from '../../shared/host/run.ts'
import type { SessionDiskRecord } from './journal.ts'

const info = z.object({
  format: z.literal('qcow2'),
  'full-backing-filename': z.string().optional(),
  'backing-filename': z.string().optional(),
  'backing-filename-format': z.string().optional(),
})
const map = z.array(z.object({ depth: z.number() }))

export type OverlayFile =
  | { readonly kind: 'missing' }
  /** Nothing of it ever reached the medium, so no flush of the guest's did either. */
  | { readonly kind: 'blank' }
  /** A qcow2 on the session's base. */
  | { readonly kind: 'ours'; readonly bytes: number; readonly writtenMs: number }
  | { readonly kind: 'strange'; readonly why: string }

/** Some file systems do not count blocks. */
async function startsBlank(file: string): Promise<boolean> {
  const handle = await open(file, 'r')
  try {
    const { buffer, bytesRead } = await handle.read(Buffer.alloc(4096), 0, 4096, 0)
    return buffer.subarray(0, bytesRead).every(byte => byte === 0)
  } finally {
    await handle.close()
  }
}

/** Inode of the directory that an overlay is in; undefined when that is not there. */
export async function placeOf(overlay: string): Promise<number | undefined> {
  return (await stat(path.dirname(overlay)).catch(() => undefined))?.ino
}

/** Looks at the overlay of a disk that no QEMU has open. */
export async function inspectOverlay(disk: SessionDiskRecord): Promise<OverlayFile> {
  const { overlay, base } = disk
  const found = await stat(overlay).catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  })
  if (!found) return { kind: 'missing' }
  if (found.blocks === 0 && (await startsBlank(overlay))) return { kind: 'blank' }
  const result = await run('qemu-img', ['info', '-U', '-f', 'qcow2', '--output=json', overlay])
  if (result.exitCode !== 0) return { kind: 'strange', why: reasonOf(result) }
  const header = info.safeParse(JSON.parse(result.stdout))
  const backing = header.data?.['full-backing-filename'] ?? header.data?.['backing-filename']
  if (backing !== base)
    return { kind: 'strange', why: `its header names ${backing ?? 'no backing file'}` }
  // Without it qemu-img would guess the format from what the guest wrote.
  const format = header.data?.['backing-filename-format']
  if (format !== disk.format)
    return { kind: 'strange', why: `its header says that ${base} is ${format ?? 'of any format'}` }
  return { kind: 'ours', bytes: found.blocks * 512, writtenMs: found.mtimeMs }
}

/** Whether the guest wrote anything to an overlay that no QEMU has open: qcow2 tells which clusters are its own. */
export async function holdsData({ overlay }: SessionDiskRecord): Promise<boolean> {
  const result = await run('qemu-img', ['map', '-U', '-f', 'qcow2', '--output=json', overlay], {
    timeoutMs: 600_000,
  })
  if (result.exitCode !== 0)
    throw new Failure('MERGE_FAILED', `qemu-img map ${overlay}: ${reasonOf(result)}`)
  return map.parse(JSON.parse(result.stdout)).some(extent => extent.depth === 0)
}

const chain = z.array(z.object({ 'full-backing-filename': z.string().optional() }))

/** Only "no such file" is missing: what cannot be read may be there. */
async function isMissing(file: string): Promise<boolean> {
  try {
    await stat(file)
    return false
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return true
    throw error
  }
}

/** Whether a qcow2 image lies on the overlay, at any depth, as far as its headers tell. */
export async function liesOn(image: string, overlay: string): Promise<boolean> {
  if (image === overlay) return false
  const result = await run('qemu-img', [
    'info',
    '-U',
    '-f',
    'qcow2',
    '--backing-chain',
    '--output=json',
    image,
  ])
  if (result.exitCode !== 0 && (await isMissing(image))) return false
  if (result.exitCode !== 0)
    throw new Failure('MERGE_FAILED', `qemu-img info ${image}: ${reasonOf(result)}`)
  return chain
    .parse(JSON.parse(result.stdout))
    .some(one => one['full-backing-filename'] === overlay)
}

/** When the base was last written to, in ms since the epoch; block devices do not tell. */
export async function baseWrittenMs(
  disk: Pick<SessionDiskRecord, 'base' | 'baseType'>,
): Promise<number | undefined> {
  return disk.baseType === 'file' ? (await stat(disk.base)).mtimeMs : undefined
}

const CLOSE_PATIENCE_MS = 10_000

/**
 * Deletes an overlay once nothing uses it any more.
 * @param user who still uses it, as far as QEMU and libvirt tell
 * @throws Failure MERGE_FAILED when somebody goes on using it for 10 s
 */
export async function removeOverlay(
  domain: string,
  overlay: string,
  user: () => Promise<string | undefined>,
): Promise<void> {
  const end = Date.now() + CLOSE_PATIENCE_MS
  for (;;) {
    const [opener] = await openersOf(overlay)
    const by = (await user()) ?? (opener && `${opener.command} (pid ${opener.pid})`)
    if (by === undefined) break
    if (Date.now() > end)
      throw new Failure('MERGE_FAILED', `overlay ${overlay} of ${domain} is still used by ${by}`)
    await delay(100)
  }
  await unlink(overlay).catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
  })
}
