// The steps of an exchange, disk by disk: saving what an image holds, patching it, going back, and the names that follow.

import { createHash } from 'node:crypto'
import type { FileHandle } from 'node:fs/promises'
import { rename, rm } from 'node:fs/promises'
import path from 'node:path'
import type { Failure } from '../../shared/failures.ts'
import { fsyncPath } from '../../shared/host/durable.ts'
import { trim } from '../../shared/host/trim.ts'
import { openPool } from '../copy/pool.ts'
import { allRuns, badFailure, offsetOf, workOff, type Through } from '../copy/runs.ts'
import type { BadChunk } from '../copy/worker.ts'
import { CHUNK_SIZE, chunkCount, chunkLength } from '../plan.ts'
import { damageOf, markDamaged } from './damage.ts'
import {
  openExchange,
  placesOf,
  readRuns,
  setSize,
  sync,
  type ExchangeFiles,
} from './exchange-files.ts'
import type { Layout } from './layout.ts'
import { readDigests } from './manifest.ts'
import { readState, writeState } from './state.ts'
import type { ExchangedDisk, Journal } from './undo.ts'
import { exists } from './view.ts'

/** Copies into a new record what patching will overwrite, and reads that back. @returns chunks that were bad before */
export async function saveDisk(
  layout: Layout,
  { to }: Journal,
  disk: ExchangedDisk,
  through: Through,
): Promise<BadChunk[]> {
  await using files = await openExchange(layout, to, disk)
  const { image, saved } = files.places
  const { size } = disk.before
  const { fd } = await files.openImage(image)
  const direct = await files.openDirect(image)
  const record = await files.open(saved, 'w+')
  await setSize(record, saved, size)
  const job = {
    ...({ kind: 'move', fd, direct, to: record.fd, size, manifest: files.before } as const),
    ...({ onto: 'fresh', wrong: 'keep' } as const),
  }
  const bad = await workOff(files.differing(chunkCount(size)), () => job, saved, through)
  await sync(record, saved)
  const known = new Set(bad.map(({ chunk }) => chunk))
  const check = { fd: record.fd, manifest: files.before, size }
  const found = await readRuns(files, saved, check, files.differing(chunkCount(size)), through)
  const lost = found.filter(({ chunk }) => !known.has(chunk))
  if (lost[0]) throw differs(saved, lost)
  return bad
}

export interface PatchOptions {
  /** The new generation is known to be damaged: what does not match its manifest goes over as it is. */
  readonly tolerant: boolean
  /** Reads back all of the image instead of what was written. */
  readonly thorough: boolean
  /** The record has all chunks, not only those that differ: those mend what the image has lost. */
  readonly complete: boolean
}

/** Makes an image hold the new generation, and reads that back. @throws Failure INTEGRITY naming the first bad chunk */
export async function patchDisk(
  layout: Layout,
  { to }: Journal,
  disk: ExchangedDisk,
  { tolerant, thorough, complete }: PatchOptions,
  through: Through,
): Promise<void> {
  await using files = await openExchange(layout, to, disk)
  const { image, patch } = files.places
  const { size } = disk.after
  const chunks = chunkCount(size)
  const target = await files.openImage(image)
  const { fd } = await files.open(patch, 'r')
  const direct = await files.openDirect(patch)
  const job = {
    ...({ kind: 'move', fd, direct, to: target.fd, size, manifest: files.after } as const),
    ...({ onto: 'data', wrong: tolerant ? 'keep' : 'leave' } as const),
  }
  const patched = complete ? allRuns(chunks) : files.differing(chunks)
  const wrong = await workOff(patched, () => job, image, through)
  if (wrong[0] && !tolerant) throw differs(patch, wrong)
  // Not made shorter yet: going back would need the space that was given away.
  if (size > disk.before.size) await setSize(target, image, size)
  await sync(target, image)
  const check = { fd: target.fd, manifest: files.after, size }
  const runs = thorough || complete ? allRuns(chunks) : files.differing(chunks)
  const bad = await readRuns(files, image, check, runs, through)
  if (bad[0] && !tolerant) throw differs(image, bad)
}

/**
 * Makes an image hold the old generation again. Needs no space: every block that differs is one that was written. What was
 * saved goes only when all images are back, so where it is gone the image is back already, which is checked all the same.
 */
export async function restoreDisk(
  layout: Layout,
  { to }: Journal,
  disk: ExchangedDisk,
  signal: AbortSignal,
): Promise<void> {
  await using files = await openExchange(layout, to, disk)
  const { image, saved, fromDir } = files.places
  const { size } = disk.before
  const chunks = chunkCount(size)
  await using pool = openPool(chunks)
  const target = await files.openImage(image)
  const check = { fd: target.fd, manifest: files.before, size }
  if (await exists(saved)) {
    const { fd } = await files.open(saved, 'r')
    const job = {
      ...({ kind: 'move', ...check, fd, direct: undefined, to: target.fd } as const),
      ...({ onto: 'data', wrong: 'keep' } as const),
    }
    await workOff(files.differing(chunks), () => job, image, { pool, signal })
    await setSize(target, image, size)
    await sync(target, image)
  }
  const bad = await readRuns(files, image, check, files.differing(chunks), { pool, signal })
  await noteDamage(fromDir, disk.target, bad)
}

/** Removes what was saved, once the images hold the old generation. */
export async function forgetSaved(layout: Layout, { to, disks }: Journal): Promise<void> {
  for (const disk of disks) {
    const { saved, fromDir } = await placesOf(layout, to, disk)
    await rm(saved, { force: true })
    await fsyncPath(fromDir)
  }
}

/** Once the images hold the new generation: everything gets its name, and the state says so. */
export async function finishExchange(layout: Layout, journal: Journal): Promise<void> {
  const published = path.join(layout.generations, journal.to)
  if (!(await exists(published))) {
    await rename(path.join(layout.staging, journal.to), published)
    await fsyncPath(layout.generations)
    await fsyncPath(layout.staging)
  }
  for (const disk of journal.disks) {
    const { image, becomes, fromDir, toDir } = await placesOf(layout, journal.to, disk)
    if (await exists(image)) {
      await rename(image, becomes)
      await fsyncPath(toDir)
      await fsyncPath(fromDir)
    }
    await finishDisk(layout, journal, disk)
  }
  const state = await readState(layout)
  const { comparedAt = state.comparedAt, distrusted = state.distrusted, ...named } = journal.state
  await writeState(layout, {
    ...{ ...state, ...named },
    comparedAt: comparedAt ?? undefined,
    distrusted: distrusted ?? undefined,
  })
}

async function finishDisk(layout: Layout, { to }: Journal, disk: ExchangedDisk): Promise<void> {
  await using files = await openExchange(layout, to, disk)
  const { becomes, patch, toDir } = files.places
  const { size } = disk.after
  const image = await files.openImage(becomes)
  await setSize(image, becomes, size)
  await sync(image, becomes)
  // Where zeros cannot be made holes again, they stay written.
  await giveBackZeros(files, image, size).catch(() => undefined)
  await rm(patch, { force: true })
  await fsyncPath(toDir)
}

async function giveBackZeros(files: ExchangeFiles, image: FileHandle, size: number): Promise<void> {
  const whole = zeroDigest(CHUNK_SIZE)
  for (const { chunk, count } of files.differing(chunkCount(size)))
    for (const [at, digest] of readDigests(files.after, chunk, count).entries()) {
      const length = chunkLength(size, chunk + at)
      const zero = length === CHUNK_SIZE ? whole : zeroDigest(length)
      if (digest === zero) await trim(image.fd, (chunk + at) * CHUNK_SIZE, length)
    }
}

const zeroDigest = (length: number): string =>
  createHash('sha256').update(Buffer.alloc(length)).digest('hex')

/** Marks a generation damaged for chunks that were found bad on the way, unless it is marked. */
export async function noteDamage(
  dir: string,
  target: string,
  bad: readonly BadChunk[],
): Promise<void> {
  if (!bad[0] || (await damageOf(dir)) !== undefined) return
  await markDamaged(dir, [`${target}: ${bad.length} bad chunks, the first is ${offsetOf(bad[0])}`])
}

const differs = (file: string, bad: readonly BadChunk[]): Failure =>
  badFailure(file, bad, 'its manifest', {
    remedy: "suspect this host's medium or memory; see dmesg and smartctl; clone verify DOMAIN",
  })
