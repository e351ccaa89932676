// What an interrupted pull left in staging/: a store of chunks, each taken only when its bytes are what the source has now.
// Nothing else of it is believed, so two recovery points are never spliced.

import { open, readdir, readFile, rm, writeFile, type FileHandle } from 'node:fs/promises'
import path from 'node:path'
import { Failure, type FailureCode } from '../../shared/failures.ts'
import { formatSize } from '../../shared/quantities.ts'
import type { Attempt } from '../attempt.ts'
import { fill } from '../copy/fill.ts'
import { imageName, manifestName, recoveryPointsIn, type Layout } from './layout.ts'
import { readDigests } from './manifest.ts'
import { exists } from './view.ts'

export interface Donor extends AsyncDisposable {
  /**
   * Fills `bytes` with its chunk when that claims to be `digest`; whoever asks must hash what came.
   * @returns false when it has no such chunk, or cannot be read
   */
  read(chunk: number, digest: string, bytes: Uint8Array): Promise<boolean>
}

/** Opens one disk of an interrupted pull; undefined when it has none. @param dir its folder in staging/ */
export async function openDonor(
  dir: string,
  disk: { target: string; format: string },
): Promise<Donor | undefined> {
  const handles: FileHandle[] = []
  const close = async (): Promise<void> => {
    for (const handle of handles.splice(0)) await handle.close()
  }
  try {
    const image = imageName(disk)
    const names = await readdir(dir)
    const file = names.find(name => name === image || name.startsWith(`${image}.from-`))
    if (file === undefined) return undefined
    for (const name of [file, manifestName(disk)])
      handles.push(await open(path.join(dir, name), 'r'))
  } catch {
    await close()
    return undefined
  }
  const [image, manifest] = handles
  if (!image || !manifest) return undefined
  return {
    async read(chunk, digest, bytes) {
      try {
        if (readDigests(manifest.fd, chunk, 1)[0] !== digest) return false
        return await fill(image.fd, chunk, bytes)
      } catch {
        // What cannot be read here is read from the source.
        return false
      }
    },
    [Symbol.asyncDispose]: close,
  }
}

/** Beside a donor's images: how many bytes of it were written, when its pull could still say so. */
const STAGED = 'staged.json'

/**
 * Clears staging/ of everything but what the next pull may take chunks from: the newest interrupted pull. Only under the
 * clone's lock. @returns its folder
 */
export async function tidyStaging(layout: Layout): Promise<string | undefined> {
  const donor = (await recoveryPointsIn(layout.staging)).at(-1)
  await clearStaging(layout, donor)
  return donor === undefined ? undefined : path.join(layout.staging, donor)
}

/**
 * Removes all of staging/ but one folder. Only under the clone's lock. While an exchange is open nothing is removed: the
 * manifests in there say which chunks are to be brought back.
 */
export async function clearStaging(layout: Layout, except?: string): Promise<void> {
  if (await exists(layout.undo)) return
  for (const name of await readdir(layout.staging))
    if (name !== except) await rm(path.join(layout.staging, name), { recursive: true, force: true })
}

/** Failures after which staged bytes are not kept: their space is needed, or they are not to be trusted. */
const WORTHLESS: readonly FailureCode[] = ['SPACE', 'INTEGRITY', 'STANDBY_IO']

/**
 * After a pull that failed: keeps what it staged, if the next one can use it, or what an earlier one has left if that is
 * more; never both. @param written bytes; 0 when nothing was staged. @returns bytes that are kept of this pull
 */
async function keepDonor(
  layout: Layout,
  id: string | undefined,
  written: number,
  code: FailureCode,
): Promise<number> {
  if (code === 'SPACE') await clearStaging(layout)
  const [before] = (await recoveryPointsIn(layout.staging)).filter(name => name !== id)
  const worthless = id === undefined || written === 0 || WORTHLESS.includes(code)
  if (worthless || (await stagedBytes(layout, before)) > written) {
    await clearStaging(layout, before)
    return 0
  }
  await clearStaging(layout, id)
  await writeFile(path.join(layout.staging, id, STAGED), JSON.stringify({ written }))
  return written
}

async function stagedBytes(layout: Layout, id: string | undefined): Promise<number> {
  if (id === undefined) return 0
  try {
    const text = await readFile(path.join(layout.staging, id, STAGED), 'utf8')
    const { written } = JSON.parse(text) as { written: unknown }
    return typeof written === 'number' ? written : 0
  } catch {
    return 0
  }
}

/** What of a failed pull is kept for the next one, and the failure saying so where that was the point. */
export async function stagedFailure(
  layout: Layout,
  { recoveryPoint, reusable, bytes }: Attempt,
  failure: Failure,
): Promise<Failure> {
  const written = reusable === true ? bytes.written : 0
  // What cannot be cleared now is cleared by the next pull.
  const kept = await keepDonor(layout, recoveryPoint, written, failure.code).catch(() => 0)
  if (failure.code !== 'PARTLY') return failure
  const what =
    kept > 0
      ? `${formatSize(kept)} are staged, and the next pull takes of them what the source still has`
      : 'nothing of it can be used by the next pull'
  return new Failure('PARTLY', `${failure.message}; ${what}`, {
    cause: failure,
    remedy: failure.remedy,
  })
}
