// The thread that computes over payload: tests for zeros and hashes; or reads back and compares. Knows nothing of NBD.

import { createHash } from 'node:crypto'
import { readSync, writeSync } from 'node:fs'
import { parentPort, workerData } from 'node:worker_threads'
import { readDigests, writeDigests } from '../store/manifest.ts'
import { CHUNK_SIZE, chunkLength } from '../plan.ts'

/** Hash a received chunk, and write its manifest line or compare it with what it must be. */
export interface DigestJob {
  readonly kind: 'digest'
  readonly slot: number
  readonly chunk: number
  /** Bytes of the disk. */
  readonly size: number
  readonly manifest: number
  /** The basis' manifest, when a chunk may be the same there. */
  readonly was?: number | undefined
  /** What the source says it is; the manifest has it already. */
  readonly expected?: string | undefined
}
/** Read chunks back and compare each with its manifest line. */
export interface CheckJob {
  readonly kind: 'check'
  readonly slot: number
  readonly chunk: number
  readonly size: number
  readonly manifest: number
  readonly count: number
  readonly fd: number
  readonly direct: number | undefined
}
/** Copy chunks to the same places of another file, each compared with its manifest line on the way. */
export interface MoveJob extends Omit<CheckJob, 'kind'> {
  readonly kind: 'move'
  readonly to: number
  /** `fresh`: an empty file, in which zero chunks stay holes. `data`: only the blocks that differ are written, zeros too. */
  readonly onto: 'fresh' | 'data'
  /** `keep`: bytes that differ from their line go over as they are; `leave`: they do not. Both are reported. */
  readonly wrong: 'keep' | 'leave'
}
export type Job = DigestJob | CheckJob | MoveJob

export interface BadChunk {
  readonly chunk: number
  readonly why: 'differs' | 'unreadable' | 'no digest'
}
export type Extent = readonly [offset: number, length: number]
export interface Outcome {
  /** Of a digest: what of the chunk is not zero, as offsets and lengths in bytes; the rest can be holes. */
  readonly data: readonly Extent[]
  /** Of a digest: the basis has the very same chunk. */
  readonly same: boolean
  /** Of a digest: it is not what was expected. */
  readonly wrong: boolean
  /** Of a check. */
  readonly bad: readonly BadChunk[]
}
export type Answer =
  | ({ readonly id: number } & Outcome)
  | { readonly id: number; readonly error: { code: string | undefined; message: string } }

/** Zeros are looked for in pieces of this many bytes: what a file system gives back without splintering. */
const GRAIN = 64 * 1024

/** What file systems allocate at once. */
const BLOCK = 4096

/** What no digest finds. */
const NOTHING = { data: [], same: false, wrong: false }

const memory = workerData as SharedArrayBuffer
const zeros = Buffer.alloc(CHUNK_SIZE)
const digestOf = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex')
const ZERO_DIGEST = digestOf(zeros)

const isZero = (bytes: Buffer): boolean => bytes.equals(zeros.subarray(0, bytes.length))
/** Runs of grains that are not all zeros, in order. */
function dataOf(bytes: Buffer): Extent[] {
  const runs: [number, number][] = []
  for (let at = 0; at < bytes.length; at += GRAIN) {
    const grain = bytes.subarray(at, at + GRAIN)
    if (isZero(grain)) continue
    const last = runs.at(-1)
    if (last && last[0] + last[1] === at) last[1] += grain.length
    else runs.push([at, grain.length])
  }
  return runs
}
const zeroDigest = (length: number): string =>
  length === CHUNK_SIZE ? ZERO_DIGEST : digestOf(zeros.subarray(0, length))

function digest({ slot, chunk, size, manifest, was, expected }: DigestJob): Outcome {
  const length = chunkLength(size, chunk)
  const bytes = Buffer.from(memory, slot * CHUNK_SIZE, length)
  const zero = isZero(bytes)
  const found = zero ? zeroDigest(length) : digestOf(bytes)
  if (expected === undefined) writeDigests(manifest, chunk, [found])
  return {
    data: zero ? [] : dataOf(bytes),
    same: was !== undefined && readDigests(was, chunk, 1)[0] === found,
    wrong: expected !== undefined && expected !== found,
    bad: [],
  }
}

/** @param onRead gets the bytes of each chunk that could be read, and whether they match */
function check(
  job: CheckJob | MoveJob,
  onRead?: (bytes: Buffer, chunk: number, good: boolean) => void,
): BadChunk[] {
  const bad: BadChunk[] = []
  readDigests(job.manifest, job.chunk, job.count).forEach((expected, at) => {
    const chunk = job.chunk + at
    const length = chunkLength(job.size, chunk)
    const bytes = Buffer.from(memory, job.slot * CHUNK_SIZE, CHUNK_SIZE)
    const readable = (expected !== '' || onRead !== undefined) && readAt(job, bytes, chunk, length)
    const good = readable && expected !== '' && matches(bytes.subarray(0, length), expected)
    if (expected === '') bad.push({ chunk, why: 'no digest' })
    else if (!readable) bad.push({ chunk, why: 'unreadable' })
    else if (!good) bad.push({ chunk, why: 'differs' })
    if (readable) onRead?.(bytes.subarray(0, length), chunk, good)
  })
  return bad
}

function move(job: MoveJob): BadChunk[] {
  const { to, onto, wrong } = job
  return check(job, (bytes, chunk, good) => {
    if (!good && wrong === 'leave') return
    const offset = chunk * CHUNK_SIZE
    const runs = onto === 'data' ? differingBlocks(to, bytes, offset) : [{ from: 0, bytes }]
    for (const { from, bytes } of runs)
      if (onto === 'data' || !isZero(bytes)) writeAll(to, bytes, offset + from)
  })
}

function writeAll(fd: number, bytes: Buffer, offset: number): void {
  for (let done = 0; done < bytes.length;)
    done += writeSync(fd, bytes, done, bytes.length - done, offset + done)
}

/** Whatever block is left alone takes no space that it did not take before; what is past the file's end counts as zeros. */
function differingBlocks(
  fd: number,
  bytes: Buffer,
  offset: number,
): { from: number; bytes: Buffer }[] {
  const there = Buffer.alloc(bytes.length)
  for (let done = 0, got = 1; done < there.length && got > 0; done += got)
    try {
      got = readSync(fd, there, done, there.length - done, offset + done)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EIO') throw error
      return [{ from: 0, bytes }]
    }
  const runs: { from: number; to: number }[] = []
  for (let from = 0; from < bytes.length; from += BLOCK) {
    const to = Math.min(from + BLOCK, bytes.length)
    if (bytes.subarray(from, to).equals(there.subarray(from, to))) continue
    const last = runs.at(-1)
    if (last?.to === from) last.to = to
    else runs.push({ from, to })
  }
  return runs.map(({ from, to }) => ({ from, bytes: bytes.subarray(from, to) }))
}

function matches(bytes: Buffer, expected: string): boolean {
  return expected === zeroDigest(bytes.length) ? isZero(bytes) : digestOf(bytes) === expected
}

/** Fills `bytes` from a chunk; false when the medium or the file's end does not give `length` bytes. */
function readAt(job: CheckJob | MoveJob, bytes: Buffer, chunk: number, length: number): boolean {
  let fd = job.direct ?? job.fd
  for (let done = 0; done < length;) {
    try {
      const got = readSync(fd, bytes, done, bytes.length - done, chunk * CHUNK_SIZE + done)
      if (got === 0) return false
      done += got
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      if (code === 'EIO') return false
      if (fd === job.fd || code !== 'EINVAL') throw error
      fd = job.fd
    }
  }
  return true
}

parentPort?.on('message', ({ id, job }: { id: number; job: Job }) => {
  let answer: Answer
  try {
    answer =
      job.kind === 'digest'
        ? { id, ...digest(job) }
        : { id, ...NOTHING, bad: job.kind === 'move' ? move(job) : check(job) }
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    answer = { id, error: { code, message } }
  }
  parentPort?.postMessage(answer)
})
