// A second copy of an image: every chunk is held against its manifest line on the way, and read back from the medium after.

import { createHash } from 'node:crypto'
import { constants, type Stats } from 'node:fs'
import { copyFile, open, rm, stat, type FileHandle } from 'node:fs/promises'
import { read } from 'node:fs'
import { promisify } from 'node:util'
import { Failure } from '../../shared/failures.ts'
import { fsyncPath } from '../../shared/host/durable.ts'
import { openImage, storeFailure } from '../copy/image.ts'
import { openPool } from '../copy/pool.ts'
import { mustPassCache } from '../copy/medium.ts'
import { allRuns, offsetOf, workOff } from '../copy/runs.ts'
import { CHUNK_SIZE, chunkCount, chunkLength } from '../plan.ts'
import { manifestDigest, readDigests, writeDigests } from './manifest.ts'

/** An image to be copied, open. */
export interface Original {
  /** For messages. */
  readonly file: string
  /** Bytes. */
  readonly size: number
  /** Its manifest, open. */
  readonly manifest: number
  /** The descriptor that has a chunk, at the chunk's own offset. */
  readonly holder: (chunk: number) => number
}

const readAt = promisify(read)

/** Chunks under way at once: some are read or written while one is hashed. */
const UNDER_WAY = 4
/** Zeros are left out in pieces of this many bytes. */
const GRAIN = 64 * 1024
const zeros = Buffer.alloc(CHUNK_SIZE)

const isZero = (bytes: Buffer): boolean => bytes.equals(zeros.subarray(0, bytes.length))
const digestOf = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex')

/** How many chunks of a disk are not all zeros, by its manifest. @param manifest open */
export function nonZeroChunks(manifest: number, size: number): number {
  const whole = digestOf(zeros)
  const last = digestOf(zeros.subarray(0, chunkLength(size, chunkCount(size) - 1)))
  const chunks = chunkCount(size)
  const BATCH = 1024
  let found = 0
  for (let chunk = 0; chunk < chunks; chunk += BATCH)
    readDigests(manifest, chunk, Math.min(BATCH, chunks - chunk)).forEach((digest, at) => {
      if (digest !== (chunk + at === chunks - 1 ? last : whole)) found++
    })
  return found
}

/**
 * Shares the blocks of `from` with a new file, where both lie on a file system that can. @returns whether it could
 * @param from may be a descriptor's path in /proc
 */
export async function reflink(from: string, to: string): Promise<boolean> {
  try {
    await copyFile(from, to, constants.COPYFILE_FICLONE_FORCE | constants.COPYFILE_EXCL)
    return true
  } catch {
    // Why it could not does not matter: copying finds what is wrong with either file.
    await rm(to, { force: true })
    return false
  }
}

/**
 * Copies an image into a new sparse file. Nothing is written whose digest is not that of the manifest.
 * @returns bytes written; the rest is holes
 * @throws the signal's reason; Failure INTEGRITY naming the chunk; SPACE or STANDBY_IO with the path
 */
export async function copyChecked(
  original: Original,
  file: string,
  signal: AbortSignal,
  onProgress: (bytes: number) => void,
): Promise<number> {
  await using target = await created(file)
  let written = 0
  const chunks = chunkCount(original.size)
  let next = 0
  let failed = false
  const work = async (): Promise<void> => {
    const buffer = Buffer.alloc(CHUNK_SIZE)
    while (next < chunks && !failed) {
      signal.throwIfAborted()
      const chunk = next++
      const bytes = await readChunk(original, chunk, buffer)
      if (readDigests(original.manifest, chunk, 1)[0] !== digestOf(bytes))
        throw bad(original.file, chunk)
      written += await writeData(target.handle, file, bytes, chunk * CHUNK_SIZE)
      onProgress(bytes.length)
    }
  }
  try {
    await target.handle.truncate(original.size)
    const works = Array.from({ length: UNDER_WAY }, () =>
      work().catch((error: unknown) => {
        failed = true
        throw error
      }),
    )
    // Nothing may still be writing when the caller removes the file.
    await Promise.allSettled(works)
    await Promise.all(works)
    await target.handle.sync()
    return written
  } catch (error) {
    signal.throwIfAborted()
    throw storeFailure(file, error)
  }
}

async function readChunk(
  { file, size, holder }: Original,
  chunk: number,
  buffer: Buffer,
): Promise<Buffer> {
  const bytes = buffer.subarray(0, chunkLength(size, chunk))
  const fd = holder(chunk)
  for (let done = 0; done < bytes.length;) {
    const at = chunk * CHUNK_SIZE + done
    const { bytesRead } = await readAt(fd, bytes, done, bytes.length - done, at).catch(
      (error: unknown) => {
        throw storeFailure(file, error)
      },
    )
    if (bytesRead === 0) throw bad(file, chunk)
    done += bytesRead
  }
  return bytes
}

/** Writes what is not zero; the rest stays holes. @returns bytes written */
async function writeData(
  handle: FileHandle,
  file: string,
  bytes: Buffer,
  offset: number,
): Promise<number> {
  let written = 0
  for (let at = 0; at < bytes.length; at += GRAIN) {
    let end = at
    while (end < bytes.length && !isZero(bytes.subarray(end, end + GRAIN))) end += GRAIN
    end = Math.min(end, bytes.length)
    try {
      for (let done = at; done < end;)
        done += (await handle.write(bytes, done, end - done, offset + done)).bytesWritten
    } catch (error) {
      throw storeFailure(file, error)
    }
    written += end - at
    at = end
  }
  return written
}

/** Copies a small file as it is, readable by its owner only, and fsyncs it. @throws Failure SPACE or STANDBY_IO with the path */
export async function copyDurably(from: string, to: string): Promise<void> {
  try {
    await copyFile(from, to, constants.COPYFILE_EXCL)
    const handle = await open(to, 'r')
    try {
      await handle.chmod(0o600)
      await handle.sync()
    } finally {
      await handle.close()
    }
  } catch (error) {
    throw storeFailure((error as NodeJS.ErrnoException).path ?? to, error)
  }
}

/** Makes the manifest of a file that has none, and fsyncs both. @returns size and digest as for generation.json */
export async function makeManifest(
  file: string,
  manifestFile: string,
  signal: AbortSignal,
): Promise<{ size: number; digest: string }> {
  const { size } = await fileStat(file)
  await using target = await created(manifestFile)
  const image = await open(file, 'r')
  try {
    const original = { file, size, manifest: -1, holder: () => image.fd }
    const buffer = Buffer.alloc(CHUNK_SIZE)
    for (let chunk = 0; chunk < chunkCount(size); chunk++) {
      signal.throwIfAborted()
      writeDigests(target.handle.fd, chunk, [digestOf(await readChunk(original, chunk, buffer))])
    }
    await target.handle.sync()
  } catch (error) {
    signal.throwIfAborted()
    throw storeFailure(manifestFile, error)
  } finally {
    await image.close()
  }
  await fsyncPath(file)
  return { size, digest: await manifestDigest(manifestFile, chunkCount(size)) }
}

export interface Copy {
  readonly file: string
  readonly manifestFile: string
  /** Bytes. */
  readonly size: number
}

/** Reads images back from the medium and holds them against their manifests. @throws Failure INTEGRITY naming the first bad chunk */
export async function readBackCopies(
  copies: readonly Copy[],
  signal: AbortSignal,
  onProgress: (bytes: number) => void,
): Promise<void> {
  await using pool = openPool(copies.reduce((sum, { size }) => sum + chunkCount(size), 0))
  for (const { file, manifestFile, size } of copies) {
    await using image = await openImage(file, manifestFile)
    const { fd, manifest } = image
    const { direct } = await mustPassCache(file, image.direct, pool.slots.at(-1), signal)
    const job = { kind: 'check', size, fd, direct, manifest } as const
    const through = { pool, signal, onProgress }
    const [first, ...more] = await workOff(allRuns(chunkCount(size)), () => job, file, through)
    if (first)
      throw new Failure(
        'INTEGRITY',
        `${file}: ${more.length + 1} chunks differ from the manifest, the first is ${offsetOf(first)}`,
        { remedy: 'suspect the medium it lies on, or the memory of this host; see dmesg' },
      )
  }
}

const fileStat = async (file: string): Promise<Stats> =>
  stat(file).catch((error: unknown) => {
    throw storeFailure(file, error)
  })

async function created(file: string): Promise<AsyncDisposable & { readonly handle: FileHandle }> {
  const handle = await open(file, 'wx+', 0o600).catch((error: unknown) => {
    throw storeFailure(file, error)
  })
  return { handle, [Symbol.asyncDispose]: () => handle.close() }
}

const bad = (file: string, chunk: number): Failure =>
  new Failure(
    'INTEGRITY',
    `${file}: ${offsetOf({ chunk, why: 'differs' })} is not what its manifest says`,
  )
