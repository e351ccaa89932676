// The client against scripted servers: every way a connection goes wrong, and that nothing is left of it.

import { createServer, type AddressInfo } from 'node:net'
import { join } from 'node:path'
import t from 'tap'
import {
  connectNbd,
  describeExport,
  listExports,
  NbdError,
  openNbd,
  type NbdConnection,
  type NbdOptions,
} from '../shared/nbd/client.ts'
import { Failure } from '../shared/failures.ts'
import {
  granted,
  listen,
  pair,
  serve,
  temporary,
  type Script,
  type SeenRequest,
} from './nbd/fake-server.ts'
import * as wire from './nbd/wire.ts'

const MIB = 2 ** 20
const OPTIONS: NbdOptions = { exportName: 'domain/vda' }
const tick = (): Promise<void> => new Promise(resolve => setImmediate(resolve))
const sleep = (ms: number): Promise<void> => new Promise(resolve => setTimeout(resolve, ms))

/** The error a promise rejects with. */
async function rejection(promise: Promise<unknown>): Promise<unknown> {
  try {
    await promise
  } catch (error) {
    return error
  }
  throw new Error('it resolved')
}

async function faultOf(promise: Promise<unknown>): Promise<string> {
  const error = await rejection(promise)
  return error instanceof NbdError ? error.fault : String(error)
}

/** Fails the test when a timer outlives it. */
function timers(): number {
  return process.getActiveResourcesInfo().filter(kind => kind === 'Timeout' || kind === 'Immediate')
    .length
}

/** Resolves when the server has seen its connections end; fails by the test's own time limit. */
async function allClosed(open: () => number): Promise<void> {
  while (open() > 0) await sleep(2)
}

/** Opens against a script, over a socket (in place) or a pipe in this process (one copy). */
async function opened(
  t: Parameters<typeof listen>[0],
  how: 'socket' | 'pipe',
  script: Script,
  options: Partial<NbdOptions> = {},
): Promise<NbdConnection> {
  if (how === 'socket') {
    const { path } = await listen(t, script)
    const connection = await connectNbd({ path }, { ...OPTIONS, ...options })
    t.teardown(() => connection.destroy())
    return connection
  }
  const [ours, theirs] = pair()
  serve(theirs, script)
  const connection = await openNbd(ours, { ...OPTIONS, ...options })
  t.teardown(() => connection.destroy())
  return connection
}

const answer = (request: SeenRequest): Buffer =>
  request.type === 2
    ? Buffer.alloc(0)
    : wire.data(request.cookie, request.offset, wire.pattern(request.length, request.offset), 1)

t.test('the handshake asks in order, and the export comes out', async t => {
  const asked: [number, Buffer][] = []
  const { path, seen } = await listen(t, {
    option: (option, data) => {
      asked.push([option, Buffer.from(data)])
      if (option === 10)
        return Buffer.concat([wire.metaContext(10, 7, 'base:allocation'), wire.ack(10)])
      if (option === 7)
        return Buffer.concat([
          wire.blockSize(7, 512, 4096, MIB),
          wire.optionReply(7, 3, wire.bytes('0001', wire.text('ignored'))),
          wire.exportInfo(7, 4 * MIB, 0x103),
          wire.ack(7),
        ])
      return granted(option, MIB)
    },
    request: (request, peer) => request.type === 2 && peer.end(),
  })
  const nbd = await connectNbd({ path }, { ...OPTIONS, metaContexts: ['base:allocation', 'x:y'] })
  t.strictSame(
    asked.map(([option]) => option),
    [8, 10, 7],
  )
  t.match(asked[1]?.[1].toString('latin1'), /domain\/vda.*base:allocation.*x:y/s)
  t.equal(seen()?.clientFlags, 3)
  t.match(nbd, {
    size: 4 * MIB,
    readOnly: true,
    flags: 0x103,
    structured: true,
    blockSize: { minimum: 512, preferred: 4096, maximum: MIB },
  })
  t.strictSame([...nbd.metaContexts], [['base:allocation', 7]])
  await nbd.disconnect()
  await nbd.disconnect()
  t.equal(await nbd.closed, undefined)
  t.strictSame(
    seen()?.requests.map(request => request.type),
    [2],
    'NBD_CMD_DISC once',
  )
})

t.test(
  'a server without structured replies serves all the same, and is asked for no contexts',
  async t => {
    const options: number[] = []
    const nbd = await opened(
      t,
      'socket',
      {
        greeting: wire.greeting(1),
        option: option => {
          options.push(option)
          return option === 8 ? wire.refusal(8, 1) : granted(option, MIB)
        },
        request: (request, peer) =>
          peer.write(wire.simple(request.cookie, 0, wire.pattern(request.length, 1))),
      },
      { metaContexts: ['base:allocation'] },
    )
    t.strictSame(options, [8, 7])
    t.strictSame([nbd.structured, nbd.metaContexts.size], [false, 0])
    const into = new Uint8Array(new SharedArrayBuffer(1000))
    await nbd.read(5, into)
    t.ok(wire.pattern(1000, 1).equals(into), 'straight into shared memory')
    t.equal(await faultOf(nbd.blockStatus(0, 10, 'base:allocation')), 'INVALID_REQUEST')
  },
)

t.test('a refusal names the reply and carries the words of the server', async t => {
  const table: [number, string, string][] = [
    [1, 'NO_GO', 'NBD_REP_ERR_UNSUP'],
    [2, 'OPTION_REFUSED', 'NBD_REP_ERR_POLICY'],
    [5, 'OPTION_REFUSED', 'NBD_REP_ERR_TLS_REQD'],
    [6, 'OPTION_REFUSED', 'NBD_REP_ERR_UNKNOWN'],
    [7, 'OPTION_REFUSED', 'NBD_REP_ERR_SHUTDOWN'],
    [99, 'OPTION_REFUSED', 'NBD_REP_ERR 99'],
  ]
  for (const [code, fault, reply] of table) {
    const { path, open } = await listen(t, {
      option: option => (option === 7 ? wire.refusal(7, code, 'because\n') : granted(option, MIB)),
    })
    const error = await rejection(connectNbd({ path }, OPTIONS))
    t.match(error, { fault, reply, serverText: 'because', code: 'SOURCE_REFUSED' }, reply)
    t.ok(error instanceof Failure && (code === 1 || error.message.includes('domain/vda')))
    await allClosed(open)
  }
})

t.test('a handshake that breaks the rules is named', async t => {
  const go =
    (...replies: Buffer[]): Script['option'] =>
    option =>
      option === 7 ? Buffer.concat(replies) : granted(option, MIB)
  const table: [string, Script, string][] = [
    [
      'oldstyle',
      { greeting: wire.bytes(wire.text('NBDMAGIC'), '0000420281861253', Buffer.alloc(136)) },
      'OLDSTYLE',
    ],
    ['no NBD at all', { greeting: wire.text('220 mail.example.org ESMTP\r\n') }, 'BAD_MAGIC'],
    ['GO without size', { option: go(wire.ack(7)) }, 'BAD_EXPORT'],
    ['ACK with data', { option: go(wire.optionReply(7, 1, wire.u32(0))) }, 'BAD_OPTION_REPLY'],
    [
      'reply of another kind',
      { option: go(wire.optionReply(7, 2, wire.u32(0))) },
      'BAD_OPTION_REPLY',
    ],
    ['reply to another option', { option: go(wire.ack(6)) }, 'BAD_OPTION_REPLY'],
    [
      'information of one byte',
      { option: go(wire.optionReply(7, 3, Buffer.alloc(1))) },
      'BAD_EXPORT',
    ],
    ['too large', { option: go(wire.exportInfo(7, 2n ** 60n), wire.ack(7)) }, 'EXPORT_TOO_LARGE'],
    [
      'bytes after GO that nobody asked for',
      { option: go(wire.exportInfo(7, 9), wire.ack(7), Buffer.alloc(16)) },
      'resolved',
    ],
    [
      'endless information',
      {
        option: go(
          ...Array.from({ length: 1001 }, () => wire.optionReply(7, 3, wire.u32(0xffffffff))),
        ),
      },
      'OPTION_FLOOD',
    ],
    ['a close instead of an answer', { option: (_option, _data, peer) => void peer.end() }, 'LOST'],
  ]
  for (const how of ['socket', 'pipe'] as const)
    for (const [what, script, fault] of table) {
      const result = opened(t, how, script).then(async nbd => {
        t.match(await nbd.closed, { fault: 'BAD_MAGIC' })
        throw new Error('resolved')
      })
      t.match(await faultOf(result), fault, `${how}: ${what}`)
    }
  const twice = {
    option: (option: number) =>
      option === 10
        ? Buffer.concat([wire.metaContext(10, 1, 'a:b'), wire.metaContext(10, 1, 'a:c')])
        : granted(option, MIB),
  }
  t.equal(await faultOf(opened(t, 'pipe', twice, { metaContexts: ['a:'] })), 'BAD_OPTION_REPLY')
})

t.test('the handshake is bounded in time, and GO has a time of its own', async t => {
  const { path } = await listen(t, { option: () => undefined })
  const before = timers()
  t.match(await rejection(connectNbd({ path }, { ...OPTIONS, handshakeTimeoutMs: 20 })), {
    fault: 'HANDSHAKE_TIMEOUT',
    code: 'TRANSFER',
  })
  const drip = createServer(peer => {
    const all = Buffer.concat([wire.greeting(), Buffer.alloc(10_000)])
    let at = 0
    const timer = setInterval(() => peer.write(all.subarray(at, ++at)), 2)
    peer.on('error', () => undefined).once('close', () => clearInterval(timer))
  })
  const folder = temporary(t)
  await new Promise<void>(resolve => drip.listen(join(folder, 's'), resolve))
  const dripping = connectNbd({ path: join(folder, 's') }, { ...OPTIONS, handshakeTimeoutMs: 50 })
  t.equal(await faultOf(dripping), 'HANDSHAKE_TIMEOUT', 'slow drip')
  await new Promise(resolve => drip.close(resolve))
  const prerun = await listen(t, {
    option: (option, _data, peer) => {
      if (option !== 7) return granted(option, MIB)
      setTimeout(() => peer.write(granted(7, MIB)), 300)
      return undefined
    },
  })
  const nbd = await connectNbd({ path: prerun.path }, { ...OPTIONS, handshakeTimeoutMs: 200 })
  nbd.destroy()
  t.match(await rejection(connectNbd({ path: prerun.path }, { ...OPTIONS, goTimeoutMs: 10 })), {
    fault: 'HANDSHAKE_TIMEOUT',
    message: /NBD_OPT_GO/,
  })
  await sleep(320)
  t.ok(timers() <= before, 'no timer is left')
})

t.test('no server: unreachable, with the address', async t => {
  const error = await rejection(connectNbd({ path: '/nonexistent/nbd.sock' }, OPTIONS))
  t.match(error, { fault: 'CONNECT', code: 'SOURCE_UNREACHABLE', message: /unix:\/nonexistent/ })
})

t.test('listing and describing ask, tell, and leave nothing open', async t => {
  const { path, seen, open } = await listen(t, {
    option: option => {
      if (option === 3)
        return Buffer.concat(
          ['a/vda', 'b/vda']
            .map(name => wire.optionReply(3, 2, wire.bytes(name.length, wire.text(name))))
            .concat(wire.ack(3)),
        )
      if (option === 9)
        return Buffer.concat([wire.metaContext(9, 0, 'base:allocation'), wire.ack(9)])
      return granted(option, MIB)
    },
  })
  t.strictSame(await listExports({ path }, {}), ['a/vda', 'b/vda'])
  await allClosed(open)
  t.strictSame(seen()?.options, [3, 2], 'ends with NBD_OPT_ABORT')
  t.match(await describeExport({ path }, OPTIONS), { size: MIB, metaContexts: ['base:allocation'] })
  await allClosed(open)
  t.strictSame(seen()?.options, [8, 9, 6, 2])
  const secret = await listen(t, { option: option => wire.refusal(option, 2, 'no lists') })
  t.match(await rejection(listExports({ path: secret.path }, {})), { reply: 'NBD_REP_ERR_POLICY' })
})

t.test(
  'a whole conversation comes out the same, cut at every byte and delivered in every way',
  async t => {
    const handshake = Buffer.concat([
      wire.greeting(),
      wire.ack(8),
      wire.metaContext(10, 1, 'base:allocation'),
      wire.ack(10),
      wire.exportInfo(7, 64),
      wire.blockSize(7, 1, 4096, MIB),
      wire.ack(7),
    ])
    const replies = Buffer.concat([
      wire.data(1, 4, wire.text('efgh')),
      wire.hole(2, 8, 4, 1),
      wire.error(3, 5, 'bad', 1),
      wire.data(1, 0, wire.text('abcd'), 1),
      wire.status(4, 1, [
        [32, 0],
        [64, 3],
      ]),
    ])
    const run = async (
      push: (part: Buffer) => void,
      nbd: Promise<NbdConnection>,
      cut: number,
    ): Promise<unknown> => {
      push(handshake.subarray(0, Math.min(cut, handshake.length)))
      await tick()
      push(handshake.subarray(Math.min(cut, handshake.length)))
      const open = await nbd
      const [one, two, three] = [new Uint8Array(8), new Uint8Array(4).fill(1), new Uint8Array(1)]
      const results = Promise.allSettled([
        open.read(0, one),
        open.read(8, two),
        open.read(12, three),
        open.blockStatus(0, 64, 'base:allocation'),
      ])
      await tick()
      push(replies.subarray(0, cut % (replies.length + 1)))
      await tick()
      push(replies.subarray(cut % (replies.length + 1)))
      const settled = await results
      open.destroy()
      return [
        Buffer.from(one).toString(),
        [...two],
        settled.map(s =>
          s.status === 'fulfilled' ? (s.value ?? 'ok') : (s.reason as NbdError).errno,
        ),
      ]
    }
    const expected = [
      'abcdefgh',
      [0, 0, 0, 0],
      [
        'ok',
        'ok',
        'NBD_EIO',
        [
          { offset: 0, length: 32, flags: 0 },
          { offset: 32, length: 32, flags: 3 },
        ],
      ],
    ]
    const options = { ...OPTIONS, metaContexts: ['base:allocation'] }
    for (let cut = 0; cut <= handshake.length; cut++) {
      const [ours, theirs] = pair()
      theirs.resume()
      const nbd = openNbd(ours, options)
      const push = (part: Buffer): void => void theirs.write(part)
      t.strictSame(await run(push, nbd, cut), expected, `one copy, cut at ${cut}`)
    }
    let peerWrite: (part: Buffer) => void = () => undefined
    const folder = temporary(t)
    let connected: () => void = () => undefined
    const server = createServer({ noDelay: true }, peer => {
      peer.on('error', () => undefined).resume()
      peerWrite = part => void peer.write(part)
      connected()
    })
    await new Promise<void>(resolve => server.listen(join(folder, 's'), resolve))
    for (let cut = 0; cut <= handshake.length; cut++) {
      const arrived = new Promise<void>(resolve => (connected = resolve))
      const nbd = connectNbd({ path: join(folder, 's') }, options)
      await arrived
      t.strictSame(
        await run(part => peerWrite(part), nbd, cut),
        expected,
        `in place, cut at ${cut}`,
      )
    }
    await new Promise(resolve => server.close(resolve))
  },
)

for (const how of ['socket', 'pipe'] as const) {
  t.test(`${how}: an error fails its own read and no other`, async t => {
    const nbd = await opened(t, how, {
      request: (request, peer) =>
        peer.write(
          request.offset === 512 ? wire.error(request.cookie, 5, 'sector gone') : answer(request),
        ),
    })
    const results = await Promise.allSettled(
      [0, 512, 1024].map(at => nbd.read(at, new Uint8Array(512))),
    )
    t.strictSame(
      results.map(result => result.status),
      ['fulfilled', 'rejected', 'fulfilled'],
    )
    t.match(results[1], {
      reason: {
        fault: 'REQUEST_FAILED',
        errno: 'NBD_EIO',
        serverText: 'sector gone',
        code: 'TRANSFER',
      },
    })
    await nbd.read(2048, new Uint8Array(1))
    t.pass('and the connection lives')
  })

  t.test(
    `${how}: a framing fault rejects everything in flight and all that comes later`,
    async t => {
      const nbd = await opened(t, how, {
        request: (request, peer) => request.offset === 1024 && peer.write(wire.none(12345)),
      })
      const all = await Promise.all(
        [0, 512, 1024].map(at => faultOf(nbd.read(at, new Uint8Array(512)))),
      )
      t.strictSame(all, ['UNKNOWN_COOKIE', 'UNKNOWN_COOKIE', 'UNKNOWN_COOKIE'])
      t.match(await nbd.closed, { fault: 'UNKNOWN_COOKIE' })
      t.equal(await faultOf(nbd.read(0, new Uint8Array(1))), 'UNKNOWN_COOKIE')
      await nbd.disconnect()
      nbd.destroy()
    },
  )

  t.test(`${how}: a server that dies in the middle of a payload`, async t => {
    const nbd = await opened(t, how, {
      request: (request, peer) => {
        if (request.offset === 0) peer.write(answer(request).subarray(0, 3000))
        setTimeout(() => peer.destroy(), 5)
      },
    })
    const reads = [0, 4096].map(at => faultOf(nbd.read(at, new Uint8Array(4096))))
    t.strictSame(await Promise.all(reads), ['LOST', 'LOST'])
    t.match(await nbd.closed, { fault: 'LOST', message: /2 requests in flight/ })
  })

  t.test(`${how}: a stall ends it, waiting without requests does not`, async t => {
    const before = timers()
    const nbd = await opened(
      t,
      how,
      { request: (request, peer) => request.offset < 4096 && peer.write(answer(request)) },
      { stallMs: 100 },
    )
    await nbd.read(0, new Uint8Array(10))
    await sleep(250)
    await nbd.read(0, new Uint8Array(10))
    t.match(await rejection(nbd.read(4096, new Uint8Array(10))), {
      fault: 'STALL',
      code: 'TRANSFER',
      message: /1 requests/,
    })
    await tick()
    t.ok(timers() <= before, 'no timer is left')
  })

  t.test(
    `${how}: bytes that keep coming, slower than all of it would take, are no stall`,
    async t => {
      const nbd = await opened(
        t,
        how,
        {
          request: (request, peer) => {
            const bytes = answer(request)
            let at = 0
            const timer = setInterval(() => {
              peer.write(bytes.subarray(at, (at += 40)))
              if (at >= bytes.length) clearInterval(timer)
            }, 10)
          },
        },
        { stallMs: 150 },
      )
      const into = new Uint8Array(1000)
      await nbd.read(0, into)
      t.ok(wire.pattern(1000, 0).equals(into))
    },
  )

  t.test(`${how}: bytes that drip are a stall, however long they keep coming`, async t => {
    const nbd = await opened(
      t,
      how,
      {
        request: (request, peer) => {
          const bytes = answer(request)
          let at = 0
          const timer = setInterval(() => peer.write(bytes.subarray(at, ++at)), 10)
          t.teardown(() => clearInterval(timer))
        },
      },
      { stallMs: 300 },
    )
    const began = performance.now()
    t.match(await rejection(nbd.read(0, new Uint8Array(64 * 1024))), {
      fault: 'STALL',
      message: /only \d+ bytes for 300 ms with 1 requests in flight/,
    })
    t.ok(performance.now() - began < 5000)
  })

  t.test(`${how}: a few bytes for each hole are no drip`, async t => {
    const nbd = await opened(
      t,
      how,
      {
        request: ({ cookie, offset, length }, peer) =>
          setTimeout(() => peer.write(wire.hole(cookie, offset, length, 1)), 20),
      },
      { stallMs: 100 },
    )
    for (let at = 0; at < 15; at++) await nbd.read(at * 65536, new Uint8Array(65536))
    t.equal(await Promise.race([nbd.closed, Promise.resolve('open')]), 'open')
  })

  t.test(`${how}: an abort rejects with the reason of the signal`, async t => {
    const abort = new AbortController()
    const reason = new Error('the operator said so')
    const nbd = await opened(t, how, {}, { signal: abort.signal })
    const reads = [0, 512].map(at => rejection(nbd.read(at, new Uint8Array(512))))
    await tick()
    abort.abort(reason)
    for (const error of await Promise.all(reads)) t.equal(error, reason)
    t.equal(await nbd.closed, reason)
  })

  t.test(`${how}: 10000 requests in flight, answered last first`, async t => {
    const held: SeenRequest[] = []
    const nbd = await opened(t, how, {
      request: (request, peer) => {
        if (held.push(request) === 10_000) for (const one of held.reverse()) peer.write(answer(one))
      },
    })
    const buffers = Array.from({ length: 10_000 }, () => new Uint8Array(64))
    await Promise.all(buffers.map((into, i) => nbd.read(i * 100, into)))
    t.ok(buffers.every((into, i) => wire.pattern(64, i * 100).equals(into)))
  })

  t.test(`${how}: requests of one turn go out in one write`, async t => {
    let parts = 0
    const nbd = await opened(t, how, {
      option: (option, _data, peer) => {
        if (option === 7) peer.on('data', () => parts++)
        return granted(option, MIB)
      },
      request: (request, peer) => peer.write(answer(request)),
    })
    await Promise.all(Array.from({ length: 50 }, (_, i) => nbd.read(i, new Uint8Array(8))))
    t.equal(parts, 1)
  })

  t.test(
    `${how}: disconnect waits for what is in flight, then for the end of the server`,
    async t => {
      const seen: number[] = []
      const nbd = await opened(t, how, {
        request: (request, peer) => {
          seen.push(request.type)
          setTimeout(() => (request.type === 2 ? peer.end() : peer.write(answer(request))), 20)
        },
      })
      const read = nbd.read(0, new Uint8Array(10))
      const began = performance.now()
      const bye = nbd.disconnect()
      t.equal(await faultOf(nbd.read(0, new Uint8Array(10))), 'CLOSED', 'nothing new is taken')
      await read
      await Promise.all([bye, nbd.disconnect()])
      t.ok(performance.now() - began >= 35, 'until the end of file')
      t.strictSame(seen, [0, 2])
      t.equal(await nbd.closed, undefined)
    },
  )

  t.test(`${how}: a server that does not end is left after the time given`, async t => {
    const before = timers()
    const nbd = await opened(t, how, {})
    await nbd.disconnect(20)
    t.match(await nbd.closed, { fault: 'DISCONNECT_TIMEOUT' })
    await tick()
    t.ok(timers() <= before, 'no timer is left')
  })
}

t.test(
  'NBD_ESHUTDOWN fails the request and disconnects softly, as the specification demands',
  async t => {
    const { path, seen } = await listen(t, {
      request: (request, peer) =>
        request.type === 2 ? peer.end() : peer.write(wire.error(request.cookie, 108)),
    })
    const nbd = await connectNbd({ path }, OPTIONS)
    t.match(await rejection(nbd.read(0, new Uint8Array(1))), { errno: 'NBD_ESHUTDOWN' })
    t.equal(await nbd.closed, undefined)
    t.strictSame(
      seen()?.requests.map(request => request.type),
      [0, 2],
    )
  },
)

t.test('a signal that is aborted already opens nothing', async t => {
  const { path } = await listen(t, {})
  const reason = new Error('too late')
  t.equal(
    await rejection(connectNbd({ path }, { ...OPTIONS, signal: AbortSignal.abort(reason) })),
    reason,
  )
})

t.test('a split read rejects only when no part can still write into the buffer', async t => {
  let late: (() => void) | undefined
  const nbd = await opened(t, 'socket', {
    option: option =>
      option === 7
        ? Buffer.concat([wire.blockSize(7, 512, 512, 512), wire.exportInfo(7, MIB), wire.ack(7)])
        : granted(option, MIB),
    request: (request, peer) => {
      if (request.offset === 0) peer.write(wire.error(request.cookie, 5))
      else late = () => peer.write(answer(request))
    },
  })
  const into = new Uint8Array(1024)
  let over = false
  const read = rejection(nbd.read(0, into)).finally(() => (over = true))
  await sleep(20)
  t.equal(over, false)
  late?.()
  t.match(await read, { errno: 'NBD_EIO' })
})

t.test('reads obey the block size; the tail that NBD cannot address is refused', async t => {
  const disk = wire.pattern(5 * 512)
  const asked: string[] = []
  const nbd = await opened(t, 'socket', {
    option: option =>
      option === 7
        ? Buffer.concat([
            wire.blockSize(7, 512, 512, 1024),
            wire.exportInfo(7, 5 * 512 + 100),
            wire.ack(7),
          ])
        : granted(option, MIB),
    request: (request, peer) => {
      asked.push(`${request.offset}+${request.length}`)
      peer.write(
        wire.data(
          request.cookie,
          request.offset,
          disk.subarray(request.offset, request.offset + request.length),
          1,
        ),
      )
    },
  })
  const into = new Uint8Array(2000)
  await nbd.read(100, into)
  t.strictSame(asked, ['0+512', '512+1024', '1536+512', '2048+512'])
  t.ok(disk.subarray(100, 2100).equals(into))
  t.match(await rejection(nbd.read(2500, new Uint8Array(100))), {
    fault: 'INVALID_REQUEST',
    message: /no multiple of its minimum block/,
  })
  t.match(await rejection(nbd.read(4096, new Uint8Array(1))), { fault: 'INVALID_REQUEST' })
  await nbd.read(0, new Uint8Array(0))
})

t.test(
  'block status asks again for what is missing, joins equal runs and cuts to the range',
  async t => {
    const asked: string[] = []
    const answers: (readonly (readonly [number, number])[])[] = [
      [[1000, 0]],
      [
        [100, 0],
        [500, 3],
      ],
      [[99999, 0]],
    ]
    const nbd = await opened(
      t,
      'pipe',
      {
        option: option =>
          option === 10
            ? Buffer.concat([wire.metaContext(10, 4, 'base:allocation'), wire.ack(10)])
            : granted(option, MIB),
        request: (request, peer) => {
          asked.push(`${request.type}: ${request.offset}+${request.length}`)
          peer.write(wire.status(request.cookie, 4, answers.shift() ?? [[1, 0]]))
        },
      },
      { metaContexts: ['base:allocation'] },
    )
    t.strictSame(await nbd.blockStatus(100, 2000, 'base:allocation'), [
      { offset: 100, length: 1100, flags: 0 },
      { offset: 1200, length: 500, flags: 3 },
      { offset: 1700, length: 400, flags: 0 },
    ])
    t.strictSame(asked, ['7: 100+2000', '7: 1100+1000', '7: 1700+400'])
    t.strictSame(await nbd.blockStatus(0, 0, 'base:allocation'), [])
  },
)

t.test('TLS: a refusal ends it, and so do bytes slipped in before TLS', async t => {
  const tls = { servername: 'localhost' }
  const never = await listen(t, { option: option => wire.refusal(option, 1) })
  t.match(await rejection(connectNbd({ path: never.path }, { ...OPTIONS, tls })), {
    fault: 'OPTION_REFUSED',
    reply: 'NBD_REP_ERR_UNSUP',
    message: /TLS refused/,
  })
  const inject = await listen(t, {
    option: option => Buffer.concat([wire.ack(option), wire.ack(8)]),
  })
  t.match(
    await faultOf(connectNbd({ path: inject.path }, { ...OPTIONS, tls })),
    /UNEXPECTED_REPLY|TLS/,
  )
  const deaf = await listen(t, { option: option => wire.ack(option) })
  const slow = connectNbd({ path: deaf.path }, { ...OPTIONS, tls, handshakeTimeoutMs: 50 })
  t.equal(await faultOf(slow), 'HANDSHAKE_TIMEOUT')
  const bad = connectNbd(
    { path: deaf.path },
    { ...OPTIONS, tls: { ...tls, cert: 'no PEM', key: 'no PEM' } },
  )
  t.equal(await faultOf(bad), 'TLS')
  t.match(await rejection(connectNbd({ path: deaf.path }, { ...OPTIONS, tls: {} })), {
    code: 'USAGE',
  })
})

t.test('TCP, by number and by name; an impossible port is unreachable', async t => {
  const server = createServer(peer =>
    serve(peer, { request: (request, to) => to.write(answer(request)) }),
  )
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  for (const host of ['127.0.0.1', 'localhost']) {
    const nbd = await connectNbd({ host, port }, OPTIONS)
    const into = new Uint8Array(100_000)
    await nbd.read(7, into)
    t.ok(wire.pattern(100_000, 7).equals(into))
    nbd.destroy()
    t.equal(await nbd.closed, undefined)
  }
  await new Promise(resolve => server.close(resolve))
  t.equal(
    await faultOf(connectNbd({ host: '127.0.0.1', port }, OPTIONS)),
    'CONNECT',
    'nobody listens',
  )
  t.equal(await faultOf(connectNbd({ host: '127.0.0.1', port: 99_999 }, OPTIONS)), 'CONNECT')
})

t.test('a stream that has ended already is lost at once', async t => {
  const [ours] = pair()
  ours.destroy()
  await tick()
  t.equal(await faultOf(openNbd(ours, OPTIONS)), 'LOST')
})

t.test(
  'an in-process server may send everything in one piece, and answer in the middle of a write',
  async t => {
    const [ours, theirs] = pair()
    const nbd = openNbd(ours, OPTIONS)
    let wrote = 0
    theirs.on('data', () => {
      if (++wrote === 3) theirs.write(wire.simple(0, 0))
    })
    theirs.write(
      Buffer.concat([wire.greeting(), wire.ack(8), wire.exportInfo(7, MIB), wire.ack(7)]),
    )
    const connection = await nbd
    t.equal(connection.size, MIB)
    t.match(await connection.closed, { fault: 'UNKNOWN_COOKIE' })
  },
)
