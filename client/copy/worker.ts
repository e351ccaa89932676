// The thread that touches payload: tests for zeros, hashes, writes; or reads back and compares. Knows nothing of NBD.

import { createHash } from 'node:crypto'
import { readSync, writeSync } from 'node:fs'
import { parentPort, workerData } from 'node:worker_threads'
import { readDigests, writeDigests } from '../store/manifest.ts'
import { CHUNK_SIZE, chunkLength } from '../plan.ts'

/** Hash a received chunk and write it with its manifest line. */
export interface StoreJob {
  readonly kind: 'store'
  readonly slot: number
  readonly chunk: number
  /** Bytes of the disk. */
  readonly size: number
  readonly fd: number
  readonly direct: number | undefined
  readonly manifest: number
}
/** Read chunks back and compare each with its manifest line. */
export interface CheckJob extends Omit<StoreJob, 'kind'> {
  readonly kind: 'check'
  readonly count: number
}
export type Job = StoreJob | CheckJob

export interface BadChunk {
  readonly chunk: number
  readonly why: 'differs' | 'unreadable' | 'no digest'
}
export type Answer =
  | { readonly id: number; readonly written: number; readonly bad: readonly BadChunk[] }
  | { readonly id: number; readonly error: { code: string | undefined; message: string } }

/** O_DIRECT wants lengths in whole blocks; 4 KiB suits every disk. */
const BLOCK = 4096

const memory = workerData as SharedArrayBuffer
const zeros = Buffer.alloc(CHUNK_SIZE)
const digestOf = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex')
const ZERO_DIGEST = digestOf(zeros)

const isZero = (bytes: Buffer): boolean => bytes.equals(zeros.subarray(0, bytes.length))
const zeroDigest = (length: number): string =>
  length === CHUNK_SIZE ? ZERO_DIGEST : digestOf(zeros.subarray(0, length))

/** @returns bytes written; a chunk of zeros stays a hole */
function store(job: StoreJob): number {
  const length = chunkLength(job.size, job.chunk)
  const bytes = Buffer.from(memory, job.slot * CHUNK_SIZE, length)
  const zero = isZero(bytes)
  if (!zero) writeAt(job, bytes)
  writeDigests(job.manifest, job.chunk, [zero ? zeroDigest(length) : digestOf(bytes)])
  return zero ? 0 : length
}

function writeAt(job: StoreJob, bytes: Buffer): void {
  const offset = job.chunk * CHUNK_SIZE
  let fd = bytes.length % BLOCK === 0 ? (job.direct ?? job.fd) : job.fd
  for (let done = 0; done < bytes.length;) {
    try {
      done += writeSync(fd, bytes, done, bytes.length - done, offset + done)
    } catch (error) {
      // A short direct write leaves an unaligned rest, and some file systems refuse O_DIRECT only here.
      if (fd === job.fd || (error as NodeJS.ErrnoException).code !== 'EINVAL') throw error
      fd = job.fd
    }
  }
}

function check(job: CheckJob): BadChunk[] {
  const bad: BadChunk[] = []
  readDigests(job.manifest, job.chunk, job.count).forEach((expected, at) => {
    const chunk = job.chunk + at
    const length = chunkLength(job.size, chunk)
    const bytes = Buffer.from(memory, job.slot * CHUNK_SIZE, CHUNK_SIZE)
    if (expected === '') bad.push({ chunk, why: 'no digest' })
    else if (!readAt(job, bytes, chunk, length)) bad.push({ chunk, why: 'unreadable' })
    else if (!matches(bytes.subarray(0, length), expected)) bad.push({ chunk, why: 'differs' })
  })
  return bad
}

function matches(bytes: Buffer, expected: string): boolean {
  return expected === zeroDigest(bytes.length) ? isZero(bytes) : digestOf(bytes) === expected
}

/** Fills `bytes` from a chunk; false when the medium or the file's end does not give `length` bytes. */
function readAt(job: CheckJob, bytes: Buffer, chunk: number, length: number): boolean {
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
      job.kind === 'store'
        ? { id, written: store(job), bad: [] }
        : { id, written: 0, bad: check(job) }
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    answer = { id, error: { code, message } }
  }
  parentPort?.postMessage(answer)
})
