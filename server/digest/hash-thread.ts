// One of the hashing process's threads: SHA-256 of what lies in the memory that they share.

import { createHash } from 'node:crypto'
import { parentPort, workerData } from 'node:worker_threads'
import { CHUNK_SIZE } from '../../shared/chunks.ts'

/** The first `length` bytes of a lane's slot. */
export interface Question {
  readonly lane: number
  readonly length: number
}
export interface Answer {
  readonly lane: number
  readonly digest: string
}

const memory = workerData as SharedArrayBuffer
const zeros = Buffer.alloc(CHUNK_SIZE)
const sha256 = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex')
const ZERO_DIGEST = sha256(zeros)

parentPort?.on('message', ({ lane, length }: Question) => {
  const bytes = Buffer.from(memory, lane * CHUNK_SIZE, length)
  // Comparing is ten times as fast as hashing, and most of a young disk is zeros.
  const isZero = length === CHUNK_SIZE && bytes.equals(zeros)
  const answer: Answer = { lane, digest: isZero ? ZERO_DIGEST : sha256(bytes) }
  parentPort?.postMessage(answer)
})
