// Seeds a clone from an exported folder, so that the first pull of a big domain has something to build upon.

import { mkdir, open, rm, truncate } from 'node:fs/promises'
import path from 'node:path'
import { Cleanup } from '../shared/cleanup.ts'
import { Failure } from '../shared/failures.ts'
import { fsyncPath } from '../shared/host/durable.ts'
import { formatSize } from '../shared/quantities.ts'
import type { Attempt, Watcher } from './attempt.ts'
import { storeFailure } from './copy/image.ts'
import type { ImportedDisk, ImportFolder } from './import-folder.ts'
import { chunkCount } from './plan.ts'
import { repairCurrent } from './store/current.ts'
import { clearStaging } from './store/donor.ts'
import {
  copyChecked,
  copyDurably,
  nonZeroChunks,
  readBackCopies,
  reflink,
} from './store/duplicate.ts'
import { soundGenerations, type Generation } from './store/generation.ts'
import { imageName, manifestName, type Layout } from './store/layout.ts'
import { manifestDigest } from './store/manifest.ts'
import type { Ownership } from './store/ownership.ts'
import { publish, seal } from './store/publish.ts'
import { bytesOf, checkFree, RESERVE } from './store/room.ts'
import { readState, writeState } from './store/state.ts'

/**
 * Copies a folder's images into staging, holds every byte against manifest and digest, reads all back, and publishes it. Only
 * under the clone's lock. @param attempt is told how far it got. @throws Failure INTEGRITY, SPACE, STANDBY_IO
 */
export async function importFolder(
  layout: Layout,
  { generation, disks, definitions }: ImportFolder,
  attempt: Attempt,
  ownership: Ownership,
  signal: AbortSignal,
  watcher: Watcher,
): Promise<{ seq: number; dir: string }> {
  await using cleanup = new Cleanup()
  cleanup.defer(() => watcher.done())
  await clearStaging(layout)

  const { id } = generation.recoveryPoint
  attempt.recoveryPoint = id
  const staging = path.join(layout.staging, id)
  await mkdir(staging, { mode: 0o700 })
  cleanup.defer(() => rm(staging, { recursive: true, force: true }))
  const shared = await canShare(disks, staging)
  const needed = shared ? 0 : disks.reduce((sum, one) => sum + bytesIn(one), 0)
  await checkFree(
    layout.staging,
    needed + RESERVE,
    3 * disks.length + 8,
    `the import needs up to ${formatSize(needed + RESERVE)}`,
  )

  const total = disks.reduce((sum, { disk }) => sum + disk.size, 0)
  let began = performance.now()
  const phaseEnds = (name: string): void => {
    attempt.seconds[name] = Math.round(performance.now() - began) / 1000
    began = performance.now()
  }
  watcher.phase('copy', total)
  for (const disk of disks) {
    const { read, written } = attempt.bytes
    const brought = await bringIn(disk, staging, shared, signal, bytes => watcher.progress(bytes))
    Object.assign(attempt.bytes, { read: read + disk.disk.size, written: written + brought })
  }
  phaseEnds('copy')
  watcher.phase('verify', total)
  const copies = disks.map(({ disk }) => {
    const [file, manifestFile] = namesIn(staging, disk)
    return { file, manifestFile, size: disk.size }
  })
  await readBackCopies(copies, signal, bytes => watcher.progress(bytes))
  phaseEnds('verify')
  for (const [name, content] of definitions) await write(path.join(staging, name), content)
  signal.throwIfAborted()

  // The seq is used up first and the clone bound last: the generation itself says whose it is.
  const state = await readState(layout)
  const seq = state.lastSeq + 1
  await writeState(layout, { ...state, lastSeq: seq })
  const verified = { level: 'all', at: new Date().toISOString() } as const
  await seal(layout, { ...generation, seq, verified }, ownership)
  const dir = await publish(layout, id)
  attempt.seq = seq
  const { hostId, domainUuid } = generation.source
  const { comparedAt, ...rest } = state
  const next = { ...rest, lastSeq: seq, bound: { hostId, domainUuid } }
  await writeState(layout, next)
  await repairCurrent(layout, next, await soundGenerations(layout.dir))
  return { seq, dir }
}

const bytesIn = ({ disk, manifest }: ImportedDisk): number =>
  bytesOf(nonZeroChunks(manifest.fd, disk.size), disk.size)

/** Descriptors have names, too: what was opened and checked is what is read, whatever the path leads to by now. */
const openedAs = (fd: number): string => `/proc/self/fd/${fd}`

/** Whether folder and store are on one file system that shares blocks; tried with a manifest. */
async function canShare(disks: readonly ImportedDisk[], staging: string): Promise<boolean> {
  const [first] = disks
  const trial = path.join(staging, 'trial')
  const shares = first !== undefined && (await reflink(openedAs(first.manifest.fd), trial))
  await rm(trial, { force: true })
  return shares
}

const namesIn = (dir: string, disk: Generation['disks'][number]): [string, string] => [
  path.join(dir, imageName(disk)),
  path.join(dir, manifestName(disk)),
]

/** The manifest first: from here on it is the one that generation.json names, and every chunk is held against it. @returns bytes written */
async function bringIn(
  { disk, file, image, manifest }: ImportedDisk,
  staging: string,
  shared: boolean,
  signal: AbortSignal,
  onProgress: (bytes: number) => void,
): Promise<number> {
  const [to, toManifest] = namesIn(staging, disk)
  await copyDurably(openedAs(manifest.fd), toManifest)
  const digest = await manifestDigest(toManifest, chunkCount(disk.size))
  if (digest !== disk.digest)
    throw new Failure(
      'INTEGRITY',
      `${path.join(path.dirname(file), manifestName(disk))} is not the manifest that generation.json names`,
    )
  if (shared && (await reflink(openedAs(image.fd), to))) {
    // It may have grown since it was looked at.
    await truncate(to, disk.size)
    await fsyncPath(to)
    onProgress(disk.size)
    return 0
  }
  const lines = await open(toManifest, 'r')
  try {
    const original = { file, size: disk.size, manifest: lines.fd, holder: () => image.fd }
    return await copyChecked(original, to, signal, onProgress)
  } finally {
    await lines.close()
  }
}

async function write(file: string, content: Uint8Array): Promise<void> {
  try {
    const handle = await open(file, 'wx', 0o600)
    try {
      await handle.writeFile(content)
      await handle.sync()
    } finally {
      await handle.close()
    }
  } catch (error) {
    throw storeFailure(file, error)
  }
}
