// shared/nbd without sockets: bytes from tables in, messages or a named fault out.

import { readFileSync } from 'node:fs'
import path from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { cover, isComplete, MAX_PIECES } from '../shared/nbd/coverage.ts'
import {
  decodeBlockSize,
  decodeExportInfo,
  decodeGreeting,
  decodeMetaContext,
  decodeOptionReply,
  decodeServerName,
  optionBudget,
  printable,
  type Decoder,
} from '../shared/nbd/decode.ts'
import {
  encodeClientFlags,
  encodeInfoRequest,
  encodeMetaContextQuery,
  encodeOption,
  encodeRequests,
} from '../shared/nbd/encode.ts'
import { NBD_FAULTS, NbdError, type NbdFault } from '../shared/nbd/faults.ts'
import { decodeReplies, type Expected, type NbdExtent } from '../shared/nbd/replies.ts'
import { checkRange, planRead } from '../shared/nbd/split.ts'
import * as wire from './nbd/wire.ts'
import { ROOT } from './lab/names.ts'

/** Feeds bytes in place, never across one of the cuts; returns the decoder's result, if it ended. */
function feed<T>(
  decoder: Decoder<T>,
  input: Uint8Array,
  cuts: readonly number[] = [],
): T | undefined {
  let step = decoder.next()
  let filled = 0
  for (let at = 0; at < input.length && !step.done;) {
    const cut = cuts.find(place => place > at) ?? input.length
    const length = Math.min(step.value.length - filled, cut - at)
    step.value.set(input.subarray(at, at + length), filled)
    at += length
    filled += length
    if (filled === step.value.length) {
      step = decoder.next()
      filled = 0
    }
  }
  return step.done ? step.value : undefined
}

interface World {
  structured?: boolean
  contexts?: readonly number[]
  requests: readonly { cookie: number; offset: number; length: number; status?: boolean }[]
}

/** What came of each request, in the order in which they finished. */
function receive(world: World, input: Buffer, cuts: readonly number[] = []): string[] {
  const finished: string[] = []
  const table = new Map<number, Expected>()
  for (const { cookie, offset, length, status } of world.requests)
    table.set(cookie, {
      type: status ? 7 : 0,
      cookie,
      offset,
      length,
      into: new Uint8Array(status ? 0 : length).fill(0xee),
      covered: [],
      statuses: new Map<number, NbdExtent[]>(),
      error: undefined,
    })
  const decoder = decodeReplies({
    structured: world.structured ?? true,
    contextIds: new Set(world.contexts ?? []),
    find: cookie => table.get(cookie),
    finish: request => {
      table.delete(request.cookie)
      const status = [...request.statuses].map(
        ([id, extents]) =>
          `${id}=${extents.map(e => `${e.offset}+${e.length}:${e.flags}`).join(',')}`,
      )
      finished.push(
        `${request.cookie} ${
          request.error
            ? `${request.error.errno ?? ''} ${request.error.serverText ?? ''}`.trim()
            : [Buffer.from(request.into).toString('hex'), ...status].filter(Boolean).join(' ')
        }`,
      )
    },
  })
  feed(decoder, input, cuts)
  return finished
}

function faultOf(action: () => unknown): string {
  try {
    action()
    return 'no fault'
  } catch (error) {
    return error instanceof NbdError ? error.fault : `not an NbdError: ${String(error)}`
  }
}

t.test('what is sent is what the specification prints', t => {
  const table: [string, Buffer, string][] = [
    ['client flags', encodeClientFlags(3), '00000003'],
    ['NBD_OPT_ABORT', encodeOption(2), '49484156454f5054 00000002 00000000'],
    ['GO data', encodeInfoRequest('a/b'), '00000003 612f62 0002 0000 0003'],
    [
      'SET_META_CONTEXT data',
      encodeMetaContextQuery('x', ['base:allocation']),
      '00000001 78 00000001 0000000f 626173653a616c6c6f636174696f6e',
    ],
    [
      'two requests at once',
      encodeRequests([
        { type: 0, cookie: 1, offset: 2 ** 40 + 5, length: 4096 },
        { type: 7, cookie: Number.MAX_SAFE_INTEGER, offset: 0, length: 2 ** 32 - 1 },
      ]),
      '25609513 0000 0000 0000000000000001 0000010000000005 00001000' +
        '25609513 0000 0007 001fffffffffffff 0000000000000000 ffffffff',
    ],
  ]
  for (const [what, sent, expected] of table)
    t.equal(sent.toString('hex'), expected.replaceAll(' ', ''), what)
  t.equal(
    faultOf(() => encodeInfoRequest('x'.repeat(4097))),
    'INVALID_REQUEST',
  )
  t.end()
})

t.test('a greeting gives the handshake flags, wherever it is cut', t => {
  const input = wire.greeting(3)
  for (let cut = 0; cut <= input.length; cut++) t.equal(feed(decodeGreeting(), input, [cut]), 3)
  t.end()
})

t.test('a greeting that is none is named', t => {
  const table: [string, Buffer, string][] = [
    ['another protocol', wire.text('SSH-2.0-OpenSSH_9.2p1\r\n'), 'BAD_MAGIC'],
    ['oldstyle', wire.bytes(wire.text('NBDMAGIC'), '0000420281861253'), 'OLDSTYLE'],
    ['unknown second magic', wire.text('NBDMAGICNBDMAGIC'), 'BAD_MAGIC'],
    ['newstyle that is not fixed', wire.greeting(0), 'OLDSTYLE'],
  ]
  for (const [what, input, fault] of table)
    t.equal(
      faultOf(() => feed(decodeGreeting(), input)),
      fault,
      what,
    )
  t.throws(() => feed(decodeGreeting(), wire.text('SSH-2.0-x')), { message: /"SSH-2.0-"/ })
  t.end()
})

t.test('an option reply is bounded, and answers the option that was asked', t => {
  const reply = (input: Buffer): unknown => feed(decodeOptionReply(7, optionBudget()), input)
  t.strictSame(reply(wire.optionReply(7, 3, wire.text('ab'))), { type: 3, data: wire.text('ab') })
  t.equal(
    faultOf(() => reply(wire.ack(6))),
    'BAD_OPTION_REPLY',
  )
  t.equal(
    faultOf(() => reply(wire.bytes('0003e889045565aa', 7, 1, 0))),
    'BAD_MAGIC',
  )
  t.equal(
    faultOf(() => reply(wire.bytes('0003e889045565a9', 7, 1, 65537))),
    'OVERSIZE',
  )
  const budget = optionBudget()
  const one = wire.optionReply(3, 2, Buffer.alloc(60_000))
  for (let i = 0; i < 17; i++) feed(decodeOptionReply(3, budget), one)
  t.equal(
    faultOf(() => feed(decodeOptionReply(3, budget), one)),
    'OPTION_FLOOD',
    '1 MiB in all',
  )
  t.end()
})

t.test('the data of option replies', t => {
  t.strictSame(decodeExportInfo(wire.bytes(wire.u64(2 ** 46), '0003')), { size: 2 ** 46, flags: 3 })
  t.strictSame(decodeBlockSize(wire.bytes(512, 4096, 0xffffffff)), {
    minimum: 512,
    preferred: 4096,
    maximum: 0xffffffff,
  })
  t.equal(decodeServerName(wire.bytes(2, wire.text('abdescription'))), 'ab')
  t.strictSame(decodeMetaContext(wire.bytes(9, wire.text('base:x'))), { id: 9, name: 'base:x' })
  const table: [string, () => unknown, string][] = [
    [
      '64 TiB and a byte',
      () => decodeExportInfo(wire.bytes(wire.u64(2 ** 46 + 1), '0001')),
      'EXPORT_TOO_LARGE',
    ],
    [
      '2^64 - 1 bytes',
      () => decodeExportInfo(wire.bytes('ffffffffffffffff 0001')),
      'EXPORT_TOO_LARGE',
    ],
    [
      'flags without HAS_FLAGS',
      () => decodeExportInfo(wire.bytes(wire.u64(1), '0002')),
      'BAD_EXPORT',
    ],
    ['short export info', () => decodeExportInfo(wire.u64(1)), 'BAD_EXPORT'],
    ['minimum of 0', () => decodeBlockSize(wire.bytes(0, 4096, 4096)), 'BAD_EXPORT'],
    ['minimum of 3', () => decodeBlockSize(wire.bytes(3, 4096, 4096)), 'BAD_EXPORT'],
    ['minimum of 128 KiB', () => decodeBlockSize(wire.bytes(131072, 131072, 131072)), 'BAD_EXPORT'],
    ['maximum of a byte', () => decodeBlockSize(wire.bytes(1, 1, 1)), 'BAD_EXPORT'],
    ['maximum below minimum', () => decodeBlockSize(wire.bytes(4096, 4096, 512)), 'BAD_EXPORT'],
    ['long block size', () => decodeBlockSize(wire.bytes(1, 1, 1, 1)), 'BAD_EXPORT'],
    [
      'name past its reply',
      () => decodeServerName(wire.bytes(3, wire.text('ab'))),
      'BAD_OPTION_REPLY',
    ],
    ['no name length', () => decodeServerName(wire.text('ab')), 'BAD_OPTION_REPLY'],
    ['context without name', () => decodeMetaContext(wire.u32(1)), 'BAD_OPTION_REPLY'],
  ]
  for (const [what, action, fault] of table) t.equal(faultOf(action), fault, what)
  t.end()
})

t.test("a server's words cannot steer the terminal", t => {
  t.equal(printable(wire.text('no\u001b[31m such\r\nexport\u202e ')), 'no [31m such export')
  t.end()
})

t.test('simple replies come out the same wherever the stream is cut', t => {
  const world = {
    structured: false,
    requests: [
      { cookie: 1, offset: 0, length: 4 },
      { cookie: 2, offset: 4, length: 2 },
      { cookie: 3, offset: 9, length: 1 },
    ],
  }
  const input = wire.bytes(
    wire.simple(2, 0, wire.text('ef')),
    wire.simple(3, 5),
    wire.simple(1, 0, wire.text('abcd')),
  )
  const expected = ['2 6566', '3 NBD_EIO', '1 61626364']
  for (let cut = 0; cut <= input.length; cut++)
    for (const second of [cut, cut + 1, cut + 5])
      t.strictSame(receive(world, input, [cut, second]), expected, `cut at ${cut} and ${second}`)
  t.end()
})

const MIXED: World = {
  contexts: [3, 4],
  requests: [
    { cookie: 1, offset: 100, length: 8 },
    { cookie: 2, offset: 2 ** 33, length: 4 },
    { cookie: 5, offset: 0, length: 100, status: true },
    { cookie: 6, offset: 0, length: 9 },
    { cookie: 7, offset: 0, length: 9, status: true },
  ],
}
const MIXED_INPUT = wire.bytes(
  wire.data(1, 106, wire.text('gh')),
  wire.data(2, 2 ** 33, wire.text('wxyz'), 1),
  wire.status(
    5,
    3,
    [
      [50, 0],
      [100, 3],
    ],
    0,
  ),
  wire.hole(1, 102, 4),
  wire.error(6, 108, 'going down'),
  wire.data(1, 100, wire.text('ab')),
  wire.simple(7, 22),
  wire.status(5, 4, [[1, 1]], 1),
  wire.none(1),
)
const MIXED_RESULT = [
  '2 7778797a',
  '6 NBD_ESHUTDOWN going down',
  '7 NBD_EINVAL',
  '5 3=0+50:0,50+100:3 4=0+1:1',
  '1 6162000000006768',
]

t.test('chunks in any order and interleaved come out the same wherever they are cut', t => {
  for (let cut = 0; cut <= MIXED_INPUT.length; cut++)
    t.strictSame(receive(MIXED, MIXED_INPUT, [cut]), MIXED_RESULT, `cut at byte ${cut}`)
  t.strictSame(
    receive(MIXED, MIXED_INPUT, Array.from(MIXED_INPUT.keys())),
    MIXED_RESULT,
    'byte by byte',
  )
  t.end()
})

t.test('an error chunk fails its request, and the text comes along', t => {
  const one = { requests: [{ cookie: 1, offset: 0, length: 4 }] }
  const table: [string, Buffer, string[]][] = [
    ['final', wire.error(1, 5, 'bad disk'), ['1 NBD_EIO bad disk']],
    ['at an offset', wire.errorAt(1, 5, 3, 'here'), ['1 NBD_EIO here']],
    ['then NONE', wire.bytes(wire.error(1, 12, '', 0), wire.none(1)), ['1 NBD_ENOMEM']],
    [
      'data, then the error',
      wire.bytes(wire.data(1, 0, wire.text('abcd')), wire.errorAt(1, 5, 0)),
      ['1 NBD_EIO'],
    ],
    ['the first of two', wire.bytes(wire.error(1, 1, '', 0), wire.error(1, 5)), ['1 NBD_EPERM']],
    ['unknown errno', wire.error(1, 77), ['1 errno 77']],
    [
      'unknown error type',
      wire.chunk(1, 1, 0x9999, wire.bytes(5, '0002', wire.text('hmmore'))),
      ['1 NBD_EIO hm'],
    ],
    ['not final', wire.error(1, 5, '', 0), []],
    ['simple, against the specification', wire.simple(1, 22), ['1 NBD_EINVAL']],
  ]
  for (const [what, input, expected] of table) t.strictSame(receive(one, input), expected, what)
  t.end()
})

t.test('every framing fault ends the connection under its own name', t => {
  const abcd = wire.text('abcd')
  const read: World = { requests: [{ cookie: 1, offset: 100, length: 4 }] }
  const plain: World = { ...read, structured: false }
  const asked: World = {
    contexts: [3],
    requests: [{ cookie: 1, offset: 100, length: 4, status: true }],
  }
  const table: [string, World, Buffer, NbdFault][] = [
    ['wrong magic', read, wire.bytes('deadbeef', Buffer.alloc(12)), 'BAD_MAGIC'],
    ['simple: unknown cookie', plain, wire.simple(2, 0), 'UNKNOWN_COOKIE'],
    ['cookie with high bits', plain, wire.simple(2n ** 63n + 1n, 0), 'UNKNOWN_COOKIE'],
    ['chunk: unknown cookie', read, wire.none(0), 'UNKNOWN_COOKIE'],
    ['a second reply', plain, wire.bytes(wire.simple(1, 5), wire.simple(1, 5)), 'UNKNOWN_COOKIE'],
    [
      'a chunk after the final one',
      read,
      wire.bytes(wire.error(1, 5), wire.none(1)),
      'UNKNOWN_COOKIE',
    ],
    ['structured without negotiation', plain, wire.none(1), 'UNEXPECTED_REPLY'],
    ['simple success for a structured read', read, wire.simple(1, 0, abcd), 'UNEXPECTED_REPLY'],
    ['simple success for a block status', asked, wire.simple(1, 0), 'UNEXPECTED_REPLY'],
    ['data for a block status', asked, wire.data(1, 100, abcd, 1), 'UNEXPECTED_REPLY'],
    ['hole for a block status', asked, wire.hole(1, 100, 4, 1), 'UNEXPECTED_REPLY'],
    ['block status for a read', read, wire.status(1, 3, [[4, 0]]), 'UNEXPECTED_REPLY'],
    ['unknown type', read, wire.chunk(1, 1, 3), 'UNKNOWN_CHUNK'],
    ['extended block status', asked, wire.chunk(1, 1, 6, Buffer.alloc(24)), 'UNKNOWN_CHUNK'],
    ['NONE with payload', read, wire.chunk(1, 1, 0, abcd), 'BAD_LENGTH'],
    ['NONE not final', read, wire.none(1, 0), 'MISSING_DONE'],
    ['data without data', read, wire.chunk(1, 1, 1, wire.u64(100)), 'BAD_LENGTH'],
    ['more data than asked', read, wire.data(1, 100, Buffer.alloc(5), 1), 'OVERSIZE'],
    [
      'a claim of 4 GiB',
      read,
      wire.bytes('668e33ef 0001 0001', wire.u64(1), 0xffffffff),
      'OVERSIZE',
    ],
    ['data before the range', read, wire.data(1, 99, abcd, 1), 'OUT_OF_RANGE'],
    ['data past the range', read, wire.data(1, 101, abcd, 1), 'OUT_OF_RANGE'],
    ['data at 2^64 - 4', read, wire.data(1, 2n ** 64n - 4n, abcd, 1), 'OUT_OF_RANGE'],
    ['hole of 0', read, wire.hole(1, 100, 0, 1), 'BAD_LENGTH'],
    ['hole of wrong length', read, wire.chunk(1, 1, 2, Buffer.alloc(13)), 'BAD_LENGTH'],
    ['hole past the range', read, wire.hole(1, 100, 5, 1), 'OUT_OF_RANGE'],
    ['hole of 4 GiB', read, wire.hole(1, 100, 0xffffffff, 1), 'OUT_OF_RANGE'],
    [
      'the same data twice',
      read,
      wire.bytes(wire.data(1, 100, abcd), wire.data(1, 100, abcd, 1)),
      'OVERLAP',
    ],
    [
      'data over a hole',
      read,
      wire.bytes(wire.hole(1, 100, 3), wire.data(1, 102, wire.text('cd'), 1)),
      'OVERLAP',
    ],
    [
      'a hole over data',
      read,
      wire.bytes(wire.data(1, 101, wire.text('b')), wire.hole(1, 100, 4, 1)),
      'OVERLAP',
    ],
    ['done with nothing', read, wire.none(1), 'SHORT_READ'],
    ['done with the tail missing', read, wire.data(1, 100, wire.text('abc'), 1), 'SHORT_READ'],
    [
      'done with a gap',
      read,
      wire.bytes(wire.data(1, 100, wire.text('a')), wire.data(1, 102, wire.text('cd'), 1)),
      'SHORT_READ',
    ],
    ['error 0', read, wire.error(1, 0), 'BAD_ERROR'],
    ['short error chunk', read, wire.chunk(1, 1, 0x8001, abcd), 'BAD_LENGTH'],
    [
      'error text past its chunk',
      read,
      wire.chunk(1, 1, 0x8001, wire.bytes(5, '0005', abcd)),
      'BAD_LENGTH',
    ],
    [
      'error offset without room',
      read,
      wire.chunk(1, 1, 0x8002, wire.bytes(5, '0004', abcd, abcd)),
      'BAD_LENGTH',
    ],
    ['error offset outside', read, wire.errorAt(1, 5, 104), 'OUT_OF_RANGE'],
    [
      'error chunk of 1 MiB',
      read,
      wire.bytes('668e33ef 0001 8001', wire.u64(1), 2 ** 20),
      'OVERSIZE',
    ],
    ['block status without extents', asked, wire.status(1, 3, []), 'BAD_LENGTH'],
    ['block status cut', asked, wire.chunk(1, 1, 5, Buffer.alloc(13)), 'BAD_LENGTH'],
    [
      'block status of 16 MiB',
      asked,
      wire.bytes('668e33ef 0001 0005', wire.u64(1), 2 ** 24 + 4),
      'OVERSIZE',
    ],
    ['extent of 0', asked, wire.status(1, 3, [[0, 0]]), 'BAD_STATUS'],
    [
      'extents past the end',
      asked,
      wire.status(1, 3, [
        [4, 0],
        [4, 0],
      ]),
      'BAD_STATUS',
    ],
    ['a context nobody asked for', asked, wire.status(1, 9, [[4, 0]]), 'BAD_STATUS'],
    [
      'the same context twice',
      asked,
      wire.bytes(wire.status(1, 3, [[4, 0]], 0), wire.status(1, 3, [[4, 0]])),
      'BAD_STATUS',
    ],
    ['no context at all', asked, wire.none(1), 'BAD_STATUS'],
  ]
  for (const [what, world, input, fault] of table) {
    t.equal(
      faultOf(() => receive(world, input)),
      fault,
      what,
    )
    t.ok(NBD_FAULTS[fault].ends, `${fault} is one that ends the connection`)
  }
  t.end()
})

t.test('an overlapping chunk is refused before it can touch what had arrived', t => {
  const into = new Uint8Array(4)
  const request: Expected = {
    type: 0,
    cookie: 1,
    offset: 0,
    length: 4,
    into,
    covered: [],
    statuses: new Map(),
    error: undefined,
  }
  const decoder = decodeReplies({
    structured: true,
    contextIds: new Set(),
    find: () => request,
    finish: () => undefined,
  })
  const input = wire.bytes(wire.data(1, 0, wire.text('abcd')), wire.data(1, 0, wire.text('XXXX')))
  t.equal(
    faultOf(() => feed(decoder, input)),
    'OVERLAP',
  )
  t.equal(Buffer.from(into).toString(), 'abcd')
  t.end()
})

t.test('coverage agrees with counting bytes one by one', t => {
  const piece = fc.tuple(fc.nat(40), fc.integer({ min: 1, max: 12 }))
  fc.assert(
    fc.property(fc.array(piece, { maxLength: 30 }), pieces => {
      const covered: number[] = []
      const bytes = new Set<number>()
      for (const [start, length] of pieces) {
        const range = Array.from({ length }, (_, i) => start + i)
        const overlaps = range.some(byte => bytes.has(byte))
        if ((cover(covered, start, start + length) === 'OVERLAP') !== overlaps) return false
        if (!overlaps) for (const byte of range) bytes.add(byte)
      }
      const top = Math.max(0, ...bytes) + 1
      return isComplete(covered, top) === (bytes.size === top)
    }),
    { seed: 20261120, numRuns: 500 },
  )
  t.pass('over 500 sets of pieces')
  t.end()
})

t.test('a reply in too many scattered pieces is refused, one in order is one piece', t => {
  const covered: number[] = []
  for (let i = 0; i < MAX_PIECES; i++) cover(covered, 2 * i, 2 * i + 1)
  t.equal(cover(covered, 2 * MAX_PIECES, 2 * MAX_PIECES + 1), 'TOO_MANY_CHUNKS')
  t.equal(cover(covered, 1, 2), undefined, 'filling a gap is still possible')
  const ordered: number[] = []
  for (let i = 0; i < 1000; i++) cover(ordered, i, i + 1)
  t.strictSame(ordered, [0, 1000])
  t.end()
})

t.test('a read is cut to the block sizes, and puts every byte in its place', t => {
  const plan = (offset: number, length: number, minimum: number, maximum: number): string[] =>
    planRead(offset, new Uint8Array(length), { minimum, preferred: minimum, maximum }).map(
      part =>
        `${part.offset}+${part.into.length}${part.bounce ? ` skip ${part.bounce.skip} take ${part.bounce.target.length}` : ''}`,
    )
  t.strictSame(plan(0, 4096, 1, 2 ** 25), ['0+4096'])
  t.strictSame(plan(5, 10, 1, 4), ['5+4', '9+4', '13+2'])
  t.strictSame(plan(0, 2 ** 25 + 1, 1, 0xffffffff), ['0+33554432', '33554432+1'], '32 MiB at most')
  t.strictSame(plan(10, 1100, 512, 1100), [
    '0+512 skip 10 take 502',
    '512+512',
    '1024+512 skip 0 take 86',
  ])
  t.strictSame(plan(700, 10, 512, 1024), ['512+512 skip 188 take 10'])
  fc.assert(
    fc.property(
      fc.nat(300),
      fc.nat(300),
      fc.constantFrom(1, 4, 16),
      fc.integer({ min: 16, max: 99 }),
      (offset, length, minimum, maximum) => {
        const disk = wire.pattern(1024)
        const into = new Uint8Array(length)
        for (const part of planRead(offset, into, { minimum, preferred: minimum, maximum })) {
          if (part.offset % minimum || part.into.length % minimum || part.into.length > maximum)
            return part.into.length === 0
          part.into.set(disk.subarray(part.offset, part.offset + part.into.length))
          const { skip, target } = part.bounce ?? { skip: 0, target: part.into }
          if (part.bounce) target.set(part.into.subarray(skip, skip + target.length))
        }
        return disk.subarray(offset, offset + length).equals(into)
      },
    ),
    { seed: 20261120, numRuns: 500 },
  )
  t.end()
})

t.test('what no server could answer is refused before sending', t => {
  const table: [string, () => unknown, string][] = [
    ['past the end', () => checkRange(1, 100, 100, 1), 'INVALID_REQUEST'],
    ['negative', () => checkRange(-1, 1, 100, 1), 'INVALID_REQUEST'],
    ['not a number', () => checkRange(NaN, 1, 100, 1), 'INVALID_REQUEST'],
    ['half a byte', () => checkRange(0.5, 1, 100, 1), 'INVALID_REQUEST'],
    ['not a safe integer', () => checkRange(2 ** 53, 1, 2 ** 46, 1), 'INVALID_REQUEST'],
    ['the tail below the minimum block', () => checkRange(1000, 10, 1010, 512), 'INVALID_REQUEST'],
    ['the last whole block', () => checkRange(0, 512, 1010, 512), 'no fault'],
    ['nothing, at the end', () => checkRange(1010, 0, 1010, 512), 'no fault'],
  ]
  for (const [what, action, fault] of table) t.equal(faultOf(action), fault, what)
  t.end()
})

t.test('no bytes make the decoders hang, or throw anything but an NbdError', t => {
  const seed = { seed: 20261120, numRuns: 2000 }
  const onlyNbdErrors = (action: () => unknown): boolean => {
    const fault = faultOf(action)
    return fault === 'no fault' || fault in NBD_FAULTS
  }
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), fc.array(fc.nat(200)), (noise, cuts) =>
      onlyNbdErrors(() => receive(MIXED, Buffer.from(noise), cuts)),
    ),
    seed,
  )
  const damage = fc.array(
    fc.tuple(fc.nat(MIXED_INPUT.length - 1), fc.integer({ min: 0, max: 255 })),
    { minLength: 1, maxLength: 4 },
  )
  fc.assert(
    fc.property(damage, fc.boolean(), (changes, structured) => {
      const input = Buffer.from(MIXED_INPUT)
      for (const [at, value] of changes) input[at] = value
      return onlyNbdErrors(() => receive({ ...MIXED, structured }, input))
    }),
    seed,
  )
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 40 }), noise => {
      const input = Buffer.from(noise)
      return [
        decodeExportInfo,
        decodeBlockSize,
        decodeServerName,
        decodeMetaContext,
        printable,
      ].every(decode => onlyNbdErrors(() => decode(input)))
    }),
    seed,
  )
  t.pass('none did')
  t.end()
})

t.test('docs/protocol.md has a row for every fault', t => {
  const page = readFileSync(path.join(ROOT, 'docs', 'protocol.md'), 'utf8')
  for (const [fault, { code, ends, meaning }] of Object.entries(NBD_FAULTS))
    t.ok(
      page.includes(`| \`${fault}\` | \`${code}\` | ${ends ? 'yes' : 'no'} | ${meaning} |`),
      fault,
    )
  t.end()
})
