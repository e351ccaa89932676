// Bytes to messages, for the handshake. No I/O and no clock: a decoder is a generator that yields the slot it
// wants filled and is resumed once that slot is full, so the bytes may arrive cut anywhere.

import {
  CLISERV_MAGIC,
  IHAVEOPT,
  NBD_FLAG_FIXED_NEWSTYLE,
  NBD_FLAG_HAS_FLAGS,
  NBD_MAX_MIN_BLOCK,
  NBD_MAX_STRING,
  NBD_REP_MAGIC,
  NBDMAGIC,
} from './constants.ts'
import { NbdError } from './faults.ts'
import type { BlockSize } from './split.ts'

/** Yields slots, never empty; returns the message. What it throws is an NbdError. */
export type Decoder<T> = Generator<Uint8Array, T, undefined>

/** What one server may say while options are haggled, over all options. */
export interface OptionBudget {
  replies: number
  bytes: number
}

/** One option reply's data, in bytes, at most. */
const MAX_OPTION_REPLY = 64 * 1024
const MAX_EXPORT = 64 * 2 ** 40
/** A server that takes less at once would have us cut one read into millions of requests. */
const MIN_MAXIMUM = 512

export function optionBudget(): OptionBudget {
  return { replies: 1000, bytes: 2 ** 20 }
}

/*
 * u64 NBDMAGIC | u64 IHAVEOPT | u16 handshake flags
 *
 * Section "Newstyle negotiation". Returns the flags.
 * @throws BAD_MAGIC for what is no NBD server, OLDSTYLE for one too old
 */
export function* decodeGreeting(): Decoder<number> {
  const magic = Buffer.alloc(8)
  yield magic
  if (!magic.equals(NBDMAGIC))
    throw new NbdError(
      'BAD_MAGIC',
      `NBD: the peer is no NBD server; it starts with ${JSON.stringify(printable(magic))}`,
    )
  yield magic
  if (magic.equals(CLISERV_MAGIC))
    throw new NbdError(
      'OLDSTYLE',
      'NBD: the server speaks oldstyle, which has no export names and no TLS',
    )
  if (!magic.equals(IHAVEOPT))
    throw new NbdError('BAD_MAGIC', `NBD: the greeting goes on with ${magic.toString('hex')}`)
  const flags = Buffer.alloc(2)
  yield flags
  if ((flags.readUInt16BE() & NBD_FLAG_FIXED_NEWSTYLE) === 0)
    throw new NbdError('OLDSTYLE', 'NBD: the server speaks newstyle, but not fixed newstyle')
  return flags.readUInt16BE()
}

export interface OptionReply {
  /** NBD_REP_*. */
  readonly type: number
  readonly data: Buffer
}

/*
 * u64 magic | u32 option | u32 reply type | u32 length of data | data
 *
 * Section "Fixed newstyle negotiation".
 * @throws BAD_MAGIC, BAD_OPTION_REPLY, OVERSIZE (64 KiB), OPTION_FLOOD
 */
export function* decodeOptionReply(option: number, budget: OptionBudget): Decoder<OptionReply> {
  const head = Buffer.alloc(20)
  yield head
  if (!head.subarray(0, 8).equals(NBD_REP_MAGIC))
    throw new NbdError(
      'BAD_MAGIC',
      `NBD: an option reply starts with ${head.toString('hex', 0, 8)}`,
    )
  const length = head.readUInt32BE(16)
  if (head.readUInt32BE(8) !== option)
    throw new NbdError(
      'BAD_OPTION_REPLY',
      `NBD: a reply to option ${head.readUInt32BE(8)}, but option ${option} was asked`,
    )
  if (length > MAX_OPTION_REPLY)
    throw new NbdError('OVERSIZE', `NBD: an option reply of ${length} bytes`)
  budget.replies -= 1
  budget.bytes -= length
  if (budget.replies < 0 || budget.bytes < 0)
    throw new NbdError('OPTION_FLOOD', `NBD: the replies to option ${option} do not end`)
  const data = Buffer.alloc(length)
  if (length > 0) yield data
  return { type: head.readUInt32BE(12), data }
}

/*
 * u64 size in bytes | u16 transmission flags
 *
 * NBD_INFO_EXPORT, after its u16 type.
 * @throws BAD_EXPORT, EXPORT_TOO_LARGE (64 TiB)
 */
export function decodeExportInfo(data: Buffer): { size: number; flags: number } {
  if (data.length !== 10)
    throw new NbdError('BAD_EXPORT', `NBD: export info of ${data.length} bytes`)
  const size = readU64(data, 0)
  const flags = data.readUInt16BE(8)
  if (size > MAX_EXPORT)
    throw new NbdError(
      'EXPORT_TOO_LARGE',
      `NBD: an export of ${size} bytes; 64 TiB is the most here`,
    )
  if ((flags & NBD_FLAG_HAS_FLAGS) === 0)
    throw new NbdError('BAD_EXPORT', `NBD: transmission flags ${flags} lack NBD_FLAG_HAS_FLAGS`)
  return { size, flags }
}

/*
 * u32 minimum | u32 preferred | u32 maximum, in bytes
 *
 * NBD_INFO_BLOCK_SIZE, after its u16 type. Checked as far as this client relies on it.
 * @throws BAD_EXPORT
 */
export function decodeBlockSize(data: Buffer): BlockSize {
  if (data.length !== 12)
    throw new NbdError('BAD_EXPORT', `NBD: block size of ${data.length} bytes`)
  const minimum = data.readUInt32BE(0)
  const preferred = data.readUInt32BE(4)
  const maximum = data.readUInt32BE(8)
  const sane =
    isPowerOfTwo(minimum) &&
    minimum <= NBD_MAX_MIN_BLOCK &&
    isPowerOfTwo(preferred) &&
    preferred >= minimum &&
    maximum >= Math.max(minimum, MIN_MAXIMUM)
  if (!sane)
    throw new NbdError(
      'BAD_EXPORT',
      `NBD: block sizes of ${minimum}, ${preferred} and ${maximum} bytes make no sense`,
    )
  return { minimum, preferred, maximum }
}

/*
 * u32 length of name | name | text
 *
 * NBD_REP_SERVER. Returns the name; the text is for people.
 */
export function decodeServerName(data: Buffer): string {
  const length = data.length < 4 ? Infinity : data.readUInt32BE(0)
  if (length > Math.min(data.length - 4, NBD_MAX_STRING))
    throw new NbdError('BAD_OPTION_REPLY', 'NBD: an export name longer than its reply')
  return data.toString('utf8', 4, 4 + length)
}

/*
 * u32 context id | name
 *
 * NBD_REP_META_CONTEXT.
 */
export function decodeMetaContext(data: Buffer): { id: number; name: string } {
  if (data.length < 5 || data.length > 4 + NBD_MAX_STRING)
    throw new NbdError('BAD_OPTION_REPLY', `NBD: a metadata context reply of ${data.length} bytes`)
  return { id: data.readUInt32BE(0), name: data.toString('utf8', 4) }
}

/**
 * A 64-bit number without a BigInt. One that is no safe integer comes out inexact, but never as a safe one, so
 * every range check refuses it.
 */
export function readU64(bytes: Buffer, at: number): number {
  return bytes.readUInt32BE(at) * 2 ** 32 + bytes.readUInt32BE(at + 4)
}

/** A peer's words made safe for a terminal and a log line. */
export function printable(bytes: Buffer): string {
  return bytes
    .toString('utf8', 0, NBD_MAX_STRING)
    .replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]+/gu, ' ')
    .trim()
}

function isPowerOfTwo(value: number): boolean {
  return value > 0 && Number.isInteger(Math.log2(value))
}
