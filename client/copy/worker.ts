// The thread that computes over payload: tests for zeros and hashes; or reads back and compares. Knows nothing of NBD.

import { createHash } from 'node:crypto'
import { readSync } from 'node:fs'
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
export type Job = DigestJob | CheckJob

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
      job.kind === 'digest'
        ? { id, ...digest(job) }
        : { id, data: [], same: false, wrong: false, bad: check(job) }
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    answer = { id, error: { code, message } }
  }
  parentPort?.postMessage(answer)
})
