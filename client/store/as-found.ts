// A manifest made anew from what its image holds, when the one that is there is not to be believed: the chunks of records are
// told by it, so that nothing could be kept in place, nor brought back, as long as it is wrong.

import { createHash } from 'node:crypto'
import { open, rename, rm } from 'node:fs/promises'
import path from 'node:path'
import { fsyncPath } from '../../shared/host/durable.ts'
import { fill } from '../copy/fill.ts'
import { storeFailure } from '../copy/image.ts'
import { chunkCount, chunkLength } from '../plan.ts'
import { damageOf, markDamaged } from './damage.ts'
import type { Sound } from './generation.ts'
import { imageName, manifestName } from './layout.ts'
import { manifestDigest, writeDigests } from './manifest.ts'
import type { Disk } from './view.ts'

/** The line of a chunk that cannot be read; nothing has this digest. */
const UNREADABLE = '0'.repeat(64)

/**
 * Writes a whole image's manifest as the image is, durably. Unless it then has the digest that generation.json names, its
 * generation is marked damaged. Only under the clone's lock.
 * @returns whether it is the one that generation.json names. @throws Failure STANDBY_IO, SPACE; the signal's reason
 */
export async function manifestAsFound(
  { dir }: Sound,
  disk: Disk,
  signal: AbortSignal,
): Promise<boolean> {
  const manifest = path.join(dir, manifestName(disk))
  const beside = `${manifest}.new`
  const chunks = chunkCount(disk.size)
  try {
    await using image = await open(path.join(dir, imageName(disk)), 'r')
    await using lines = await open(beside, 'w', 0o600)
    for (let chunk = 0; chunk < chunks; chunk++) {
      signal.throwIfAborted()
      const bytes = Buffer.allocUnsafe(chunkLength(disk.size, chunk))
      const readable = await fill(image.fd, chunk, bytes)
      const digest = readable ? createHash('sha256').update(bytes).digest('hex') : UNREADABLE
      writeDigests(lines.fd, chunk, [digest])
    }
    await lines.sync()
    await rename(beside, manifest)
    await fsyncPath(dir)
  } catch (error) {
    signal.throwIfAborted()
    throw storeFailure(manifest, error)
  } finally {
    await rm(beside, { force: true }).catch(() => undefined)
  }
  if ((await manifestDigest(manifest, chunks)) === disk.digest) return true
  if ((await damageOf(dir)) === undefined)
    await markDamaged(dir, [
      `${disk.target}: its manifest was another one than generation.json names, and says now what the image holds`,
    ])
  return false
}
