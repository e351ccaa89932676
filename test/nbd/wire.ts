// What a server sends, built field by field, and what a client sent, taken apart: independent of shared/nbd.

/** `hex('0102', 4, 'text')`: hex digits, u32 numbers and buffers in a row. */
export function bytes(...parts: readonly (string | number | Buffer)[]): Buffer {
  return Buffer.concat(
    parts.map(part => {
      if (typeof part === 'string') return Buffer.from(part.replaceAll(' ', ''), 'hex')
      if (typeof part === 'number') return u32(part)
      return part
    }),
  )
}

export function u16(value: number): Buffer {
  const out = Buffer.alloc(2)
  out.writeUInt16BE(value)
  return out
}

export function u32(value: number): Buffer {
  const out = Buffer.alloc(4)
  out.writeUInt32BE(value)
  return out
}

export function u64(value: number | bigint): Buffer {
  const out = Buffer.alloc(8)
  out.writeBigUInt64BE(BigInt(value))
  return out
}

export const text = (value: string): Buffer => Buffer.from(value, 'utf8')

export const greeting = (flags = 3): Buffer => bytes(text('NBDMAGICIHAVEOPT'), u16(flags))

export const optionReply = (option: number, type: number, data: Buffer = Buffer.alloc(0)): Buffer =>
  bytes('0003e889045565a9', option, type, data.length, data)

export const ack = (option: number): Buffer => optionReply(option, 1)
export const refusal = (option: number, code: number, why = ''): Buffer =>
  optionReply(option, 2 ** 31 + code, text(why))

export const exportInfo = (option: number, size: number | bigint, flags = 3): Buffer =>
  optionReply(option, 3, bytes('0000', u64(size), u16(flags)))
export const blockSize = (
  option: number,
  minimum: number,
  preferred: number,
  maximum: number,
): Buffer => optionReply(option, 3, bytes('0003', minimum, preferred, maximum))
export const metaContext = (option: number, id: number, name: string): Buffer =>
  optionReply(option, 4, bytes(id, text(name)))

export const simple = (
  cookie: number | bigint,
  errno: number,
  data: Buffer = Buffer.alloc(0),
): Buffer => bytes('67446698', errno, u64(cookie), data)

export const chunk = (
  cookie: number | bigint,
  flags: number,
  type: number,
  payload: Buffer = Buffer.alloc(0),
): Buffer => bytes('668e33ef', u16(flags), u16(type), u64(cookie), payload.length, payload)

export const data = (cookie: number, offset: number | bigint, content: Buffer, flags = 0): Buffer =>
  chunk(cookie, flags, 1, bytes(u64(offset), content))
export const hole = (cookie: number, offset: number | bigint, size: number, flags = 0): Buffer =>
  chunk(cookie, flags, 2, bytes(u64(offset), size))
export const none = (cookie: number, flags = 1): Buffer => chunk(cookie, flags, 0)
export const status = (
  cookie: number,
  id: number,
  runs: readonly (readonly [number, number])[],
  flags = 1,
): Buffer => chunk(cookie, flags, 5, bytes(id, ...runs.flat()))
export const error = (cookie: number, errno: number, why = '', flags = 1): Buffer =>
  chunk(cookie, flags, 0x8001, bytes(errno, u16(text(why).length), text(why)))
export const errorAt = (
  cookie: number,
  errno: number,
  offset: number,
  why = '',
  flags = 1,
): Buffer =>
  chunk(cookie, flags, 0x8002, bytes(errno, u16(text(why).length), text(why), u64(offset)))

/** A pattern that differs in every byte of a block and from block to block. */
export function pattern(length: number, seed = 0): Buffer {
  const out = Buffer.alloc(length)
  for (let at = 0; at < length; at++) out[at] = (at * 7 + seed * 31 + (at >> 8)) & 0xff
  return out
}
