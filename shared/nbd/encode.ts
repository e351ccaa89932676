// Messages to bytes: what a client sends, and what a server says before TLS. The field map stands above each; everything is
// big-endian.

import {
  IHAVEOPT,
  NBD_INFO_BLOCK_SIZE,
  NBD_INFO_EXPORT,
  NBD_MAX_STRING,
  NBD_REP_MAGIC,
  NBD_REQUEST_MAGIC,
  NBDMAGIC,
} from './constants.ts'
import { NbdError } from './faults.ts'

const NOTHING = Buffer.alloc(0)

/** Bytes of one encoded request. */
export const REQUEST_LENGTH = 28

export interface Request {
  /** One of NBD_CMD_*. */
  readonly type: number
  /** 0 or more, a safe integer: the high 11 bits on the wire are always 0. */
  readonly cookie: number
  /** Bytes from the start of the export. */
  readonly offset: number
  /** Bytes, below 2^32. */
  readonly length: number
}

/*
 * u32 client flags
 */
export function encodeClientFlags(flags: number): Buffer {
  return u32(flags)
}

/*
 * u64 IHAVEOPT | u32 option | u32 length of data | data
 */
export function encodeOption(option: number, data: Buffer = NOTHING): Buffer {
  return Buffer.concat([IHAVEOPT, u32(option), u32(data.length), data])
}

/*
 * u32 length of name | name | u16 number of information requests | u16 request ...
 *
 * Data of NBD_OPT_INFO and NBD_OPT_GO. Asking for the block size is a promise to honour it.
 */
export function encodeInfoRequest(exportName: string): Buffer {
  const requests = [NBD_INFO_EXPORT, NBD_INFO_BLOCK_SIZE]
  const tail = Buffer.alloc(2 + 2 * requests.length)
  tail.writeUInt16BE(requests.length, 0)
  requests.forEach((request, at) => tail.writeUInt16BE(request, 2 + 2 * at))
  return Buffer.concat([text('export name', exportName), tail])
}

/*
 * u32 length of export name | export name | u32 number of queries | (u32 length | query) ...
 *
 * Data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT.
 */
export function encodeMetaContextQuery(exportName: string, queries: readonly string[]): Buffer {
  return Buffer.concat([
    text('export name', exportName),
    u32(queries.length),
    ...queries.map(query => text('metadata context', query)),
  ])
}

/*
 * u32 magic | u16 flags | u16 type | u64 cookie | u64 offset | u32 length
 */
export function encodeRequests(requests: readonly Request[]): Buffer {
  const bytes = Buffer.allocUnsafe(REQUEST_LENGTH * requests.length)
  let at = 0
  for (const request of requests) {
    bytes.writeUInt32BE(NBD_REQUEST_MAGIC, at)
    bytes.writeUInt16BE(0, at + 4)
    bytes.writeUInt16BE(request.type, at + 6)
    writeU64(bytes, request.cookie, at + 8)
    writeU64(bytes, request.offset, at + 16)
    bytes.writeUInt32BE(request.length, at + 24)
    at += REQUEST_LENGTH
  }
  return bytes
}

/*
 * u64 NBDMAGIC | u64 IHAVEOPT | u16 handshake flags
 */
export function encodeGreeting(flags: number): Buffer {
  return Buffer.concat([NBDMAGIC, IHAVEOPT, Buffer.of(flags >> 8, flags & 0xff)])
}

/*
 * u64 magic | u32 option | u32 reply type | u32 length of data | data
 */
export function encodeOptionReply(option: number, type: number, data: Buffer = NOTHING): Buffer {
  return Buffer.concat([NBD_REP_MAGIC, u32(option), u32(type), u32(data.length), data])
}

/** Two halves instead of a BigInt: exact for every safe integer, and nothing is allocated. */
function writeU64(bytes: Buffer, value: number, at: number): void {
  bytes.writeUInt32BE(Math.floor(value / 2 ** 32), at)
  bytes.writeUInt32BE(value % 2 ** 32, at + 4)
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(value)
  return bytes
}

/** @throws INVALID_REQUEST when it is longer than the 4096 bytes that section "Values" allows */
function text(what: string, value: string): Buffer {
  const bytes = Buffer.from(value, 'utf8')
  if (bytes.length > NBD_MAX_STRING)
    throw new NbdError('INVALID_REQUEST', `NBD: the ${what} is longer than ${NBD_MAX_STRING} bytes`)
  return Buffer.concat([u32(bytes.length), bytes])
}
