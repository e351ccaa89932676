// Bytes to messages, for transmission: simple replies and structured chunks, checked against what was asked. The
// payload of a read is received straight into the request's own buffer. No I/O, no clock.

import {
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_READ,
  NBD_ERRORS,
  NBD_MAX_EXTENTS,
  NBD_MAX_STRING,
  NBD_REPLY_FLAG_DONE,
  NBD_REPLY_TYPE_BLOCK_STATUS,
  NBD_REPLY_TYPE_ERROR_OFFSET,
  NBD_REPLY_TYPE_FLAG_ERROR,
  NBD_REPLY_TYPE_NONE,
  NBD_REPLY_TYPE_OFFSET_DATA,
  NBD_REPLY_TYPE_OFFSET_HOLE,
  NBD_SIMPLE_REPLY_MAGIC,
  NBD_STRUCTURED_REPLY_MAGIC,
} from './constants.ts'
import { cover, isComplete, type Coverage } from './coverage.ts'
import { printable, readU64, type Decoder } from './decode.ts'
import { NbdError, type NbdFault } from './faults.ts'

/** One run of equal status. Offset and length in bytes; the flags mean what their context says. */
export interface NbdExtent {
  offset: number
  length: number
  flags: number
}

/** A request in flight, as far as its replies concern it. */
export interface Expected {
  readonly type: typeof NBD_CMD_READ | typeof NBD_CMD_BLOCK_STATUS
  readonly cookie: number
  readonly offset: number
  readonly length: number
  /** Where a read goes: exactly `length` bytes. */
  readonly into: Uint8Array
  /** What of a structured read has arrived. */
  readonly covered: Coverage
  /** What of a block status has arrived, by context id. */
  readonly statuses: Map<number, NbdExtent[]>
  /** The first error the server reported; the request ends with it when its last chunk is in. */
  error: NbdError | undefined
}

/** What the decoder needs to know, and whom it tells. */
export interface ReplyTable {
  readonly structured: boolean
  /** Ids of the contexts that each block status must report, once each. */
  readonly contextIds: ReadonlySet<number>
  find(cookie: number): Expected | undefined
  /** The last byte of the reply is in; `request.error` tells how it went. */
  finish(request: Expected): void
}

/** Header length, and the part that simple and structured replies share. */
const SIMPLE_LENGTH = 16
const CHUNK_LENGTH = 20
/** Bytes of a DATA chunk before the data, and of a whole HOLE chunk. */
const DATA_OVERHEAD = 8
const HOLE_LENGTH = 12
/** u32 error, u16 message length; then the message, and u64 offset or what else a new type adds. */
const ERROR_LENGTH = 6
const MAX_ERROR_CHUNK = ERROR_LENGTH + NBD_MAX_STRING + 1024

/*
 * u32 magic | u32 error     | u64 cookie                              simple; a good read's data follows
 * u32 magic | u16 flags | u16 type | u64 cookie | u32 length          structured; `length` bytes follow
 *
 * Sections "Simple reply message" and "Structured reply chunk message". Never returns.
 * @throws every fault of NBD_FAULTS that says the stream can no longer be trusted
 */
export function* decodeReplies(table: ReplyTable): Decoder<never> {
  const header = Buffer.alloc(CHUNK_LENGTH)
  const shared = header.subarray(0, SIMPLE_LENGTH)
  const length = header.subarray(SIMPLE_LENGTH)
  for (;;) {
    yield shared
    const magic = header.readUInt32BE(0)
    if (magic !== NBD_SIMPLE_REPLY_MAGIC && magic !== NBD_STRUCTURED_REPLY_MAGIC)
      throw new NbdError('BAD_MAGIC', `NBD: a reply starts with ${header.toString('hex', 0, 4)}`)
    const request = table.find(readU64(header, 8))
    if (request === undefined)
      throw new NbdError(
        'UNKNOWN_COOKIE',
        `NBD: a reply to cookie ${header.toString('hex', 8, 16)}, which is not in flight`,
      )
    if (magic === NBD_SIMPLE_REPLY_MAGIC) {
      yield* simpleReply(table, request, header.readUInt32BE(4))
    } else {
      if (!table.structured)
        throw new NbdError('UNEXPECTED_REPLY', 'NBD: a structured reply without negotiation')
      yield length
      yield* chunk(table, request, header)
    }
  }
}

/**
 * The specification forbids even a failed read's simple reply once structured replies are on. An error has no
 * payload, so it cannot be misread, and is taken for what it says.
 */
function* simpleReply(table: ReplyTable, request: Expected, errno: number): Decoder<void> {
  if (errno !== 0) request.error ??= requestError(request, errno)
  else if (table.structured)
    throw new NbdError(
      'UNEXPECTED_REPLY',
      `NBD: a simple reply to ${describe(request)}, with structured replies negotiated`,
    )
  else if (request.length > 0) yield request.into
  table.finish(request)
}

/** One chunk of a structured reply; each reader leaves the stream at the end of the chunk. */
function* chunk(table: ReplyTable, request: Expected, header: Buffer): Decoder<void> {
  const flags = header.readUInt16BE(4)
  const type = header.readUInt16BE(6)
  const length = header.readUInt32BE(16)
  const done = (flags & NBD_REPLY_FLAG_DONE) !== 0
  if ((type & NBD_REPLY_TYPE_FLAG_ERROR) !== 0) yield* errorChunk(request, type, length)
  else if (type === NBD_REPLY_TYPE_NONE) {
    if (length !== 0) throw badLength('NBD_REPLY_TYPE_NONE', length)
    if (!done) throw new NbdError('MISSING_DONE', 'NBD: NBD_REPLY_TYPE_NONE that is not final')
  } else if (type === NBD_REPLY_TYPE_OFFSET_DATA) yield* dataChunk(request, length)
  else if (type === NBD_REPLY_TYPE_OFFSET_HOLE) yield* holeChunk(request, length)
  else if (type === NBD_REPLY_TYPE_BLOCK_STATUS) yield* statusChunk(table, request, length)
  else throw new NbdError('UNKNOWN_CHUNK', `NBD: a chunk of unknown type ${type}`)
  if (done) finishChunks(table, request)
}

/** Success is not what the server claims: every byte, or every context, must have come. */
function finishChunks(table: ReplyTable, request: Expected): void {
  if (request.error === undefined) {
    if (request.type === NBD_CMD_READ && !isComplete(request.covered, request.length))
      throw new NbdError('SHORT_READ', `NBD: ${describe(request)} ended with bytes missing`)
    if (request.type === NBD_CMD_BLOCK_STATUS && request.statuses.size !== table.contextIds.size)
      throw new NbdError('BAD_STATUS', `NBD: ${describe(request)} ended with a context missing`)
  }
  table.finish(request)
}

/*
 * u64 offset | data
 */
function* dataChunk(request: Expected, length: number): Decoder<void> {
  mustBe(request, NBD_CMD_READ, 'NBD_REPLY_TYPE_OFFSET_DATA')
  if (length <= DATA_OVERHEAD) throw badLength('NBD_REPLY_TYPE_OFFSET_DATA', length)
  if (length - DATA_OVERHEAD > request.length)
    throw new NbdError('OVERSIZE', `NBD: a chunk of ${length} bytes in ${describe(request)}`)
  const head = Buffer.allocUnsafe(DATA_OVERHEAD)
  yield head
  const start = place(request, readU64(head, 0), length - DATA_OVERHEAD)
  yield request.into.subarray(start, start + length - DATA_OVERHEAD)
}

/*
 * u64 offset | u32 hole size in bytes
 */
function* holeChunk(request: Expected, length: number): Decoder<void> {
  mustBe(request, NBD_CMD_READ, 'NBD_REPLY_TYPE_OFFSET_HOLE')
  if (length !== HOLE_LENGTH) throw badLength('NBD_REPLY_TYPE_OFFSET_HOLE', length)
  const hole = Buffer.allocUnsafe(HOLE_LENGTH)
  yield hole
  const size = hole.readUInt32BE(8)
  if (size === 0) throw new NbdError('BAD_LENGTH', 'NBD: a hole of 0 bytes')
  const start = place(request, readU64(hole, 0), size)
  request.into.fill(0, start, start + size)
}

/*
 * u32 context id | (u32 length in bytes | u32 flags) ...
 */
function* statusChunk(table: ReplyTable, request: Expected, length: number): Decoder<void> {
  mustBe(request, NBD_CMD_BLOCK_STATUS, 'NBD_REPLY_TYPE_BLOCK_STATUS')
  if (length < 12 || length % 8 !== 4) throw badLength('NBD_REPLY_TYPE_BLOCK_STATUS', length)
  if (length > 4 + 8 * NBD_MAX_EXTENTS)
    throw new NbdError('OVERSIZE', `NBD: a block status chunk of ${length} bytes`)
  const payload = Buffer.allocUnsafe(length)
  yield payload
  const id = payload.readUInt32BE(0)
  if (!table.contextIds.has(id) || request.statuses.has(id))
    throw new NbdError('BAD_STATUS', `NBD: context id ${id} was not asked for, or comes twice`)
  const extents: NbdExtent[] = []
  let offset = request.offset
  for (let at = 4; at < length; at += 8) {
    const run = payload.readUInt32BE(at)
    const flags = payload.readUInt32BE(at + 4)
    if (run === 0) throw new NbdError('BAD_STATUS', 'NBD: a block status extent of 0 bytes')
    if (offset >= request.offset + request.length)
      throw new NbdError('BAD_STATUS', `NBD: extents go on past the end of ${describe(request)}`)
    extents.push({ offset, length: run, flags })
    offset += run
  }
  request.statuses.set(id, extents)
}

/*
 * u32 error | u16 message length | message | u64 offset (NBD_REPLY_TYPE_ERROR_OFFSET), or what a new type adds
 */
function* errorChunk(request: Expected, type: number, length: number): Decoder<void> {
  const tail = type === NBD_REPLY_TYPE_ERROR_OFFSET ? 8 : 0
  if (length < ERROR_LENGTH + tail) throw badLength('an error chunk', length)
  if (length > MAX_ERROR_CHUNK)
    throw new NbdError('OVERSIZE', `NBD: an error chunk of ${length} bytes`)
  const payload = Buffer.allocUnsafe(length)
  yield payload
  const errno = payload.readUInt32BE(0)
  const end = ERROR_LENGTH + payload.readUInt16BE(4)
  if (errno === 0) throw new NbdError('BAD_ERROR', 'NBD: an error chunk with error 0')
  if (end + tail > length || end > ERROR_LENGTH + NBD_MAX_STRING)
    throw new NbdError('BAD_LENGTH', `NBD: an error text longer than its chunk of ${length} bytes`)
  if (tail > 0) {
    const offset = readU64(payload, end)
    if (offset < request.offset || offset >= request.offset + request.length)
      throw new NbdError('OUT_OF_RANGE', `NBD: an error at ${offset} in ${describe(request)}`)
  }
  request.error ??= requestError(request, errno, printable(payload.subarray(ERROR_LENGTH, end)))
}

/** Where in the request's buffer a content chunk goes; marks it as arrived. */
function place(request: Expected, offset: number, length: number): number {
  const start = offset - request.offset
  if (start < 0 || start > request.length - length)
    throw new NbdError('OUT_OF_RANGE', `NBD: ${length} bytes at ${offset} in ${describe(request)}`)
  const fault: NbdFault | undefined = cover(request.covered, start, start + length)
  if (fault !== undefined)
    throw new NbdError(fault, `NBD: ${length} bytes at ${offset} in ${describe(request)}: ${fault}`)
  return start
}

function mustBe(request: Expected, type: number, chunkType: string): void {
  if (request.type !== type)
    throw new NbdError('UNEXPECTED_REPLY', `NBD: ${chunkType} in ${describe(request)}`)
}

function badLength(what: string, length: number): NbdError {
  return new NbdError('BAD_LENGTH', `NBD: ${what} of ${length} bytes`)
}

function describe(request: Expected): string {
  const command = request.type === NBD_CMD_READ ? 'NBD_CMD_READ' : 'NBD_CMD_BLOCK_STATUS'
  return `${command} of ${request.length} bytes at ${request.offset}`
}

function requestError(request: Expected, errno: number, serverText?: string): NbdError {
  const known = Object.entries(NBD_ERRORS).find(([, value]) => value === errno)
  const name = known ? known[0] : `errno ${errno}`
  const said = serverText ? `: ${serverText}` : ''
  return new NbdError('REQUEST_FAILED', `NBD: ${describe(request)} failed: ${name}${said}`, {
    errno: name,
    serverText: serverText || undefined,
  })
}
