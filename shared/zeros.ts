// The digest of a chunk that is all zeros, which need not be received to be known.

import { createHash } from 'node:crypto'
import { CHUNK_SIZE } from './chunks.ts'

const ofZeros = (length: number): string =>
  createHash('sha256').update(Buffer.alloc(length)).digest('hex')
const WHOLE = ofZeros(CHUNK_SIZE)

/** SHA-256 in hex of so many zeros. @param length bytes of a chunk */
export const zeroDigest = (length: number): string =>
  length === CHUNK_SIZE ? WHOLE : ofZeros(length)
