// One generation as a folder that needs nothing of ours: images, manifests, definitions, and how to use them.

import { chmod, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import type { Cleanup } from '../shared/cleanup.ts'
import { Failure } from '../shared/failures.ts'
import { fsyncPath } from '../shared/host/durable.ts'
import type { DiskFormat } from '../shared/gate.ts'
import { formatSize } from '../shared/quantities.ts'
import type { Watcher } from './attempt.ts'
import { convertImage, measureImage } from './convert.ts'
import { storeFailure } from './copy/image.ts'
import { readmeText } from './export-readme.ts'
import { chunkCount } from './plan.ts'
import {
  copyChecked,
  copyDurably,
  makeManifest,
  nonZeroChunks,
  readBackCopies,
  reflink,
} from './store/duplicate.ts'
import type { NewFolder } from './store/folder.ts'
import { generationSchema, type Generation, type Sound } from './store/generation.ts'
import { imageName, manifestName } from './store/layout.ts'
import { manifestDigest } from './store/manifest.ts'
import { bytesOf, checkFree, RESERVE } from './store/room.ts'
import { viewOf, type Disk, type View } from './store/view.ts'

/** What an export works with. */
export interface Work {
  readonly found: Sound
  readonly target: NewFolder
  /** Undefined: as they are. */
  readonly format: DiskFormat | undefined
  readonly signal: AbortSignal
  readonly watcher: Watcher
}

/**
 * Fills a folder with a generation and commits it. @param generations all that are sound, among them `found`, claimed
 * @param clone its name. @returns what generation.json says of it there. @throws Failure INTEGRITY, SPACE, STANDBY_IO, UNSAFE
 */
export async function exportGeneration(
  clone: string,
  generations: readonly Sound[],
  work: Work,
  cleanup: Cleanup,
): Promise<Generation> {
  const { found, target, signal, watcher } = work
  const views: View[] = []
  for (const disk of found.generation.disks) {
    const view = await viewOf(generations, found, disk)
    cleanup.defer(() => view[Symbol.asyncDispose]())
    await checkManifest(view.manifestFile, disk)
    views.push(view)
  }
  const needs = await Promise.all(views.map(view => needOf(view, work)))
  const needed = needs.reduce((sum, bytes) => sum + bytes, RESERVE)
  await checkFree(
    target.part,
    needed,
    3 * views.length + 8,
    `the export needs up to ${formatSize(needed)}`,
  )

  watcher.phase(
    'copy',
    views.reduce((sum, { disk }) => sum + disk.size, 0),
  )
  const disks: Disk[] = []
  for (const view of views) disks.push(await makeImage(view, work))
  watcher.phase(
    'verify',
    disks.reduce((sum, { size }) => sum + size, 0),
  )
  const copies = disks.map(disk => ({
    file: path.join(target.part, imageName(disk)),
    manifestFile: path.join(target.part, manifestName(disk)),
    size: disk.size,
  }))
  await readBackCopies(copies, signal, bytes => watcher.progress(bytes))

  const verified = { level: 'all', at: new Date().toISOString() } as const
  const generation = generationSchema.parse({ ...found.generation, disks, verified })
  await writeTexts(work, generation, clone)
  signal.throwIfAborted()
  await target.commit()
  return generation
}

/** The manifest says what is read: it must be the one that generation.json names. */
async function checkManifest(file: string, { size, digest }: Disk): Promise<void> {
  const found = await manifestDigest(file, chunkCount(size)).catch((error: unknown) => {
    throw storeFailure(file, error)
  })
  if (found !== digest)
    throw new Failure('INTEGRITY', `${file} is not the manifest that generation.json names`)
}

const isWhole = ({ files }: View): boolean => files.length === 1
const isConverted = ({ disk }: View, format: DiskFormat | undefined): boolean =>
  format !== undefined && format !== disk.format

/** Bytes that the export of one disk takes at most. */
async function needOf(view: View, { target, format, signal }: Omit<Work, 'pool'>): Promise<number> {
  const { disk, files, manifest } = view
  const copied = bytesOf(nonZeroChunks(manifest, disk.size), disk.size)
  if (format === undefined || format === disk.format) {
    const trial = path.join(target.part, 'trial')
    const shared = isWhole(view) && (await reflink(view.manifestFile, trial))
    await rm(trial, { force: true })
    return shared ? 0 : copied
  }
  const [file = ''] = files
  if (isWhole(view)) return measureImage({ file, format: disk.format }, format, signal)
  // Put together first, converted then. What a compressed qcow2 becomes is seen when it is put together.
  return 2 * copied
}

/** One image, as it is or converted, with its manifest, both fsynced. @returns what generation.json says of it */
async function makeImage(view: View, work: Work): Promise<Disk> {
  const { disk, files, manifestFile } = view
  const { target, signal, watcher } = work
  const onProgress = (bytes: number): void => watcher.progress(bytes)
  const manifest = path.join(target.part, manifestName(disk))
  if (work.format === undefined || !isConverted(view, work.format)) {
    const file = path.join(target.part, imageName(disk))
    const shared = isWhole(view) && (await reflink(files[0] ?? '', file))
    if (shared) onProgress(disk.size)
    else await copyChecked(originalOf(view), file, signal, onProgress)
    await copyManifest(manifestFile, manifest, disk)
    await fsyncPath(file)
    return disk
  }

  const { target: name, format, size, digest } = disk
  const converted = { target: name, format: work.format }
  const to = { file: path.join(target.part, imageName(converted)), format: work.format }
  // What is converted has been held against its manifest: where it lies, or while it is put together.
  const from = { file: files[0] ?? '', format }
  if (isWhole(view)) {
    await readBackCopies([{ file: from.file, manifestFile, size }], signal, onProgress)
  } else {
    from.file = path.join(target.part, `.${imageName(disk)}`)
    await copyChecked(originalOf(view), from.file, signal, onProgress)
  }
  const needed = await measureImage(from, to.format, signal)
  await checkFree(
    target.part,
    needed,
    2,
    `${imageName(converted)} needs up to ${formatSize(needed)}`,
  )
  watcher.note?.(`converting disk ${name} from ${format} to ${to.format}`)
  await convertImage(from, to, signal)
  await chmod(to.file, 0o600)
  if (!isWhole(view)) await rm(from.file)
  const made = await makeManifest(to.file, manifest, signal)
  return { ...converted, ...made, layers: [], convertedFrom: { format, size, digest } }
}

const originalOf = (view: View) => ({
  file: view.files[0] ?? '',
  size: view.disk.size,
  manifest: view.manifest,
  holder: (chunk: number): number => view.runs(chunk, 1)[0]?.fd ?? -1,
})

/** Byte for byte, and proven to be: its digest is in generation.json. */
async function copyManifest(from: string, to: string, disk: Disk): Promise<void> {
  await copyDurably(from, to)
  await checkManifest(to, disk)
}

async function writeTexts({ found, target }: Work, generation: Generation, clone: string) {
  const { definition, nvram } = generation
  for (const name of [definition.inactive, definition.live, nvram])
    if (name !== null) await copyDurably(path.join(found.dir, name), path.join(target.part, name))
  const texts = {
    'generation.json': `${JSON.stringify(generation, undefined, 2)}\n`,
    'README.txt': readmeText(generation, clone),
  }
  for (const [name, text] of Object.entries(texts)) {
    const file = path.join(target.part, name)
    try {
      await writeFile(file, text, { mode: 0o600, flag: 'wx' })
      await fsyncPath(file)
    } catch (error) {
      throw storeFailure(file, error)
    }
  }
}
