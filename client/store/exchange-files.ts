// Where the files of one disk's exchange lie, and the ones that a step has open.

import { constants } from 'node:fs'
import { open, type FileHandle } from 'node:fs/promises'
import path from 'node:path'
import { storeFailure } from '../copy/image.ts'
import { BATCH, workOff, type Through } from '../copy/runs.ts'
import { mustPassCache } from '../copy/medium.ts'
import type { BadChunk } from '../copy/worker.ts'
import { checkSameDevice } from './device.ts'
import { openToWrite } from './exclusive.ts'
import { imageName, manifestName, type Layout } from './layout.ts'
import { differing, recordName, type Run } from './record.ts'
import type { ExchangedDisk } from './undo.ts'
import { exists } from './view.ts'

export interface Places {
  readonly fromDir: string
  /** In staging/ until the exchange of a pull is committed. */
  readonly toDir: string
  /** What is patched: the image under its name of before, and of after. */
  readonly image: string
  readonly becomes: string
  /** What it held, as a record against the new generation. */
  readonly saved: string
  /** What it becomes, as a record against the old generation. */
  readonly patch: string
  /** The manifests of the two generations. */
  readonly before: string
  readonly after: string
}

export async function placesOf(
  layout: Layout,
  to: string,
  { target, from, before, after }: ExchangedDisk,
): Promise<Places> {
  const fromDir = path.join(layout.generations, from)
  const published = path.join(layout.generations, to)
  const toDir = (await exists(published)) ? published : path.join(layout.staging, to)
  const [old, fresh] = [
    { target, format: before.format },
    { target, format: after.format },
  ]
  return {
    fromDir,
    toDir,
    image: path.join(fromDir, imageName(old)),
    becomes: path.join(toDir, imageName(fresh)),
    saved: path.join(fromDir, recordName(old, to)),
    patch: path.join(toDir, recordName(fresh, from)),
    before: path.join(fromDir, manifestName(old)),
    after: path.join(toDir, manifestName(fresh)),
  }
}

/** One disk's files; what was opened is closed with it. */
export interface ExchangeFiles extends AsyncDisposable {
  readonly places: Places
  /** Descriptors of the two manifests. */
  readonly before: number
  readonly after: number
  open(file: string, flags: 'r' | 'w+'): Promise<FileHandle>
  /** The image under one of its names; a block device exclusively, and only when it is the one that it was. */
  openImage(file: string): Promise<FileHandle>
  /** Past the page cache; undefined where the file system has no O_DIRECT. */
  openDirect(file: string): Promise<number | undefined>
  /** Runs of the first `chunks` chunks, as far as the two generations differ in them. */
  differing(chunks: number): Iterable<Run>
}

/** @throws Failure STANDBY_IO with the path */
export async function openExchange(
  layout: Layout,
  to: string,
  disk: ExchangedDisk,
): Promise<ExchangeFiles> {
  const places = await placesOf(layout, to, disk)
  const handles: FileHandle[] = []
  const close = async (): Promise<void> => {
    for (const handle of handles.splice(0)) await handle.close()
  }
  const keep = (handle: FileHandle): FileHandle => {
    handles.push(handle)
    return handle
  }
  const opened = async (file: string, flags: string | number): Promise<FileHandle> => {
    try {
      return keep(await open(file, flags, 0o600))
    } catch (error) {
      throw storeFailure(file, error)
    }
  }
  try {
    const { fd: before } = await opened(places.before, 'r')
    const { fd: after } = await opened(places.after, 'r')
    return {
      places,
      before,
      after,
      open: opened,
      openImage: async file => {
        await checkSameDevice(layout, disk.target, file)
        return keep(await openToWrite(file))
      },
      openDirect: file =>
        opened(file, constants.O_RDONLY | constants.O_DIRECT).then(
          ({ fd }) => fd,
          () => undefined,
        ),
      differing: chunks => differing(before, after, chunks, BATCH),
      [Symbol.asyncDispose]: close,
    }
  } catch (error) {
    await close()
    throw error
  }
}

/** Reads runs of an open file back from the medium and compares them with a manifest. @returns every bad chunk, in order */
export async function readRuns(
  files: ExchangeFiles,
  file: string,
  job: { readonly fd: number; readonly manifest: number; readonly size: number },
  runs: Iterable<Run>,
  through: Through,
): Promise<BadChunk[]> {
  const { pool, signal } = through
  const opened = await files.openDirect(file)
  const { direct } = await mustPassCache(file, opened, pool.slots.at(-1), signal)
  return workOff(runs, () => ({ kind: 'check', direct, ...job }), file, through)
}

/** A file's length; a block device has the one it has. @throws Failure SPACE or STANDBY_IO with the path */
export async function setSize(handle: FileHandle, file: string, size: number): Promise<void> {
  try {
    if ((await handle.stat()).isFile()) await handle.truncate(size)
  } catch (error) {
    throw storeFailure(file, error)
  }
}

/** @throws Failure SPACE or STANDBY_IO with the path */
export async function sync(handle: FileHandle, file: string): Promise<void> {
  await handle.sync().catch((error: unknown) => {
    throw storeFailure(file, error)
  })
}
