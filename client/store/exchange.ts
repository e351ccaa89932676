// The exchange: images that hold one generation become another, in place, and what they held is kept as a record. A pull
// into a clone kept in place ends with one, a rollback consists of them.

import { rm } from 'node:fs/promises'
import path from 'node:path'
import { Failure } from '../../shared/failures.ts'
import { fsyncPath } from '../../shared/host/durable.ts'
import type { Watcher } from '../attempt.ts'
import type { Through } from '../copy/runs.ts'
import type { Pool } from '../copy/pool.ts'
import { CHUNK_SIZE, chunkCount } from '../plan.ts'
import { manifestAsFound } from './as-found.ts'
import { claimReason } from './claims.ts'
import { openExchange } from './exchange-files.ts'
import {
  finishExchange,
  noteDamage,
  patchDisk,
  saveDisk,
  type PatchOptions,
} from './exchange-steps.ts'
import { ofStore } from './failure.ts'
import { imagesOf, readGeneration, soundGenerations, type Sound } from './generation.ts'
import { checkUnused } from './guard.ts'
import { manifestName, type Layout } from './layout.ts'
import { manifestDigest } from './manifest.ts'
import { recordsOf } from './record.ts'
import type { State } from './state.ts'
import { closeJournal, recover, writeJournal, type ExchangedDisk, type Journal } from './undo.ts'
import { isWhole, type Disk } from './view.ts'

/** What of the state an exchange sets. */
export type After = Pick<State, 'selected' | 'lastSeq' | 'bound' | 'comparedAt' | 'distrusted'>

export interface Working {
  readonly pool: Pool
  /** Undoes everything, also after patching began; what is committed stays. */
  readonly signal: AbortSignal
  readonly watcher: Watcher
}

/**
 * Publishes staging/<id>, in which each disk is a whole image, or a record against the generation that holds its image
 * whole; with manifests, definitions and generation.json, all fsynced. When this returns the generation exists, also after
 * a power cut; when it throws, the images are what they were, or `recover` makes them so.
 * @param after what the state says then. @param complete the records have all chunks, not only those that differ
 * @returns the generation's folder
 * @throws Failure UNSAFE, SPACE, INTEGRITY, STANDBY_IO; the signal's reason
 */
export async function publishInPlace(
  layout: Layout,
  id: string,
  after: After,
  working: Working,
  complete = false,
): Promise<string> {
  const staged = await readGeneration(path.join(layout.staging, id))
  if (!staged.generation) throw new Failure('INTERNAL', staged.broken)
  await fsyncPath(staged.dir)
  const sound = await soundGenerations(layout.dir)
  const disks = await exchangedDisks(sound, staged)
  await checkUnclaimed(sound, disks)
  await exchange(layout, staged, disks, after, working, complete)
  return path.join(layout.generations, id)
}

/** The disks of a generation that are records, each with the generation that holds its image. @throws Failure INTEGRITY */
async function exchangedDisks(sound: readonly Sound[], to: Sound): Promise<ExchangedDisk[]> {
  const disks: ExchangedDisk[] = []
  for (const disk of to.generation.disks) {
    if (await isWhole(to, disk)) continue
    const holder = await holderOf(sound, await recordsOf(to.dir, disk), disk.target)
    if (!holder)
      throw new Failure(
        'INTEGRITY',
        `${to.dir} has no image of ${disk.target}, nor a record against a generation that has`,
      )
    const { from, disk: old } = holder
    const [before, after] = [old, disk].map(({ format, size }) => ({ format, size }))
    if (before && after) disks.push({ target: disk.target, from: from.id, before, after })
  }
  return disks
}

/** The generation, of those named, that holds a disk whole. */
async function holderOf(
  sound: readonly Sound[],
  ids: readonly string[],
  target: string,
): Promise<{ from: Sound; disk: Disk } | undefined> {
  for (const from of sound.filter(({ id }) => ids.includes(id)))
    for (const disk of from.generation.disks)
      if (disk.target === target && (await isWhole(from, disk))) return { from, disk }
  return undefined
}

/** @param to the generation that the images become, in generations/ or in staging/ */
export async function exchange(
  layout: Layout,
  to: Sound,
  disks: readonly ExchangedDisk[],
  after: After,
  working: Working,
  complete = false,
): Promise<void> {
  const { selected, lastSeq, bound, comparedAt = null, distrusted = null } = after
  const state = { selected, lastSeq, bound, comparedAt, distrusted }
  const journal: Journal = { schema: 1, step: 'saving', to: to.id, state, disks: [...disks] }
  const sound = await soundGenerations(layout.dir)
  const damaged = await checkManifests(sound, to, disks, working.signal)
  await checkUnused(layout, [], holdersOf(sound, disks).flatMap(imagesOf))

  // Whoever follows `current` while images change would get neither generation.
  await rm(layout.current, { force: true })
  await fsyncPath(layout.dir)
  await writeJournal(layout, journal)
  try {
    const found = await saveAll(layout, journal, working)
    // Somebody may have come since, and from here on bytes change.
    await checkUnused(layout, [], holdersOf(sound, disks).flatMap(imagesOf))
    working.signal.throwIfAborted()
    await writeJournal(layout, { ...journal, step: 'patching' })
    const tolerant = to.damaged !== undefined
    await patchAll(layout, journal, { tolerant, thorough: damaged || found, complete }, working)
    await writeJournal(layout, { ...journal, step: 'patched' })
  } catch (error) {
    if ((await undone(layout, error)) === 'forward') return
    throw error
  }
  await finishExchange(layout, journal)
  await closeJournal(layout)
}

/** Goes back at once, so that `current` is there again; not stopped by what stopped the exchange. */
async function undone(layout: Layout, error: unknown): Promise<'back' | 'forward' | undefined> {
  try {
    return await recover(layout)
  } catch (second) {
    const { message, code } = ofStore(layout.dir, error)
    const { message: why, remedy } = ofStore(layout.dir, second)
    throw new Failure(code, `${message}; ${why}`, { cause: error, remedy })
  }
}

/**
 * The diff of two manifests decides what is saved: they must be the right ones. That of an image that is to be patched is made
 * anew when it is not. @returns whether a generation is damaged
 */
async function checkManifests(
  sound: readonly Sound[],
  to: Sound,
  disks: readonly ExchangedDisk[],
  signal: AbortSignal,
): Promise<boolean> {
  let damaged = false
  for (const { target, from } of disks) {
    const holder = sound.find(({ id }) => id === from)
    for (const found of [to, holder]) {
      const disk = found?.generation.disks.find(one => one.target === target)
      if (!found || !disk) throw new Failure('INTERNAL', `no disk ${target} in generation ${from}`)
      damaged ||= found.damaged !== undefined
      const file = path.join(found.dir, manifestName(disk))
      if (await isManifest(file, disk)) continue
      if (found !== holder)
        throw new Failure('INTEGRITY', `${file}: not the manifest that generation.json names`)
      damaged = !(await manifestAsFound(holder, disk, signal)) || damaged
    }
  }
  return damaged
}

/** Whether a manifest is the one that generation.json names; one of the wrong length, or that is gone, is not. */
async function isManifest(file: string, { size, digest }: Disk): Promise<boolean> {
  return manifestDigest(file, chunkCount(size)).then(
    found => found === digest,
    () => false,
  )
}

/** Those whose images pass to another generation. */
const holdersOf = (sound: readonly Sound[], disks: readonly ExchangedDisk[]): Sound[] =>
  sound.filter(({ id }) => disks.some(({ from }) => from === id))

/** Claims are made under the clone's lock, so one look is enough. @throws Failure UNSAFE when images to be changed are claimed */
export async function checkUnclaimed(
  sound: readonly Sound[],
  disks: readonly ExchangedDisk[],
): Promise<void> {
  for (const { id, dir } of holdersOf(sound, disks)) {
    const claimed = await claimReason(dir)
    if (claimed !== undefined)
      throw new Failure('UNSAFE', `the images of generation ${id} would be changed; ${claimed}`, {
        remedy:
          'when that use is over: clone release DOMAIN GENERATION PURPOSE; then run this again',
      })
  }
}

/** @returns whether anything that was saved was bad */
async function saveAll(layout: Layout, journal: Journal, working: Working): Promise<boolean> {
  const through = await phase(layout, journal, 'save', working)
  let found = false
  for (const disk of journal.disks) {
    const bad = await saveDisk(layout, journal, disk, through)
    await noteDamage(path.join(layout.generations, disk.from), disk.target, bad)
    found ||= bad.length > 0
  }
  for (const { from } of journal.disks) await fsyncPath(path.join(layout.generations, from))
  return found
}

async function patchAll(
  layout: Layout,
  journal: Journal,
  options: PatchOptions,
  working: Working,
): Promise<void> {
  const through = await phase(layout, journal, 'patch', working)
  for (const disk of journal.disks) await patchDisk(layout, journal, disk, options, through)
}

/** Tells the watcher what is to come: each byte is moved once and read back once. */
async function phase(
  layout: Layout,
  journal: Journal,
  name: 'save' | 'patch',
  { pool, signal, watcher }: Working,
): Promise<Through> {
  let chunks = 0
  for (const disk of journal.disks) {
    await using files = await openExchange(layout, journal.to, disk)
    const { size } = name === 'save' ? disk.before : disk.after
    for (const { count } of files.differing(chunkCount(size))) chunks += count
  }
  watcher.phase(name, 2 * chunks * CHUNK_SIZE)
  return { pool, signal, onProgress: bytes => watcher.progress(bytes) }
}
