// What the listener says before TLS, and to a client that it refuses, as bytes; no connection is needed.

import { PassThrough } from 'node:stream'
import fc from 'fast-check'
import t from 'tap'
import { drive } from '../server/tls/drive.ts'
import { untilGone, untilStartTls } from '../server/tls/options.ts'
import { whyNotBelieved } from '../shared/certificate-faults.ts'
import type { Decoder } from '../shared/nbd/decode.ts'
import { ack, bytes, greeting, optionReply, refusal, text } from './nbd/wire.ts'

/** Runs a decoder over bytes that come in pieces. @returns what it said, and how it ended */
async function hear(
  decoder: (send: (bytes: Buffer) => void) => Decoder<unknown>,
  pieces: readonly Buffer[],
): Promise<{ said: Buffer; end: unknown }> {
  const said: Buffer[] = []
  const stream = new PassThrough()
  const end = drive(
    stream,
    decoder(bytes => said.push(bytes)),
    'the client',
  ).then(
    value => value,
    (error: unknown) => (error as Error).message,
  )
  for (const piece of pieces) {
    stream.write(piece)
    await new Promise(resolve => setImmediate(resolve))
  }
  stream.end()
  return { end: await end, said: Buffer.concat(said) }
}

const option = (number: number, data: Buffer = Buffer.alloc(0)): Buffer =>
  bytes(text('IHAVEOPT'), number, data.length, data)
const TLS_REQD = 5
const WHY = 'this server speaks NBD only over TLS'

t.test('before TLS every option but two is answered that it is required', async t => {
  const asked = [3, 6, 7, 8, 9, 10, 4711]
  const said = bytes(3, ...asked.map(one => option(one, Buffer.alloc(one % 7))))
  const answers = bytes(greeting(), ...asked.map(one => refusal(one, TLS_REQD, WHY)))
  for (const [last, answer, end] of [
    [option(5), ack(5), 3],
    [option(2), ack(2), 'the client does not ask for TLS'],
    [option(1, text('web/vda')), Buffer.alloc(0), 'the client does not ask for TLS'],
    [
      bytes(option(5, text('x')), option(2)),
      bytes(optionReply(5, 2 ** 31 + 3), ack(2)),
      'the client does not ask for TLS',
    ],
  ] as const) {
    const heard = await hear(untilStartTls, [bytes(said, last)])
    t.equal(heard.end, end)
    t.ok(heard.said.equals(bytes(answers, answer)), heard.said.toString('hex'))
  }
})

t.test('options come out the same wherever the stream is cut', async t => {
  const wire = bytes(1, option(7, text('any')), option(5))
  for (let cut = 0; cut <= wire.length; cut++) {
    const { said, end } = await hear(untilStartTls, [wire.subarray(0, cut), wire.subarray(cut)])
    t.equal(end, 1, `cut at byte ${cut}`)
    t.equal(said.length, 18 + 20 + WHY.length + 20)
  }
})

t.test('a refused client hears the reason to whatever it asks, until it goes', async t => {
  const { said } = await hear(
    send => untilGone(send, 'it is revoked'),
    [bytes(option(8), option(7, text('web')), option(2))],
  )
  const wanted = bytes(refusal(8, 2, 'it is revoked'), refusal(7, 2, 'it is revoked'), ack(2))
  t.ok(said.equals(wanted))
})

t.test(
  'bytes that come before they can be wanted end it, in the same piece or the next',
  async t => {
    const early = 'the client breaks the NBD protocol: bytes that nobody asked for'
    t.equal((await hear(untilStartTls, [bytes(3, option(5), text('x'))])).end, early)
    t.equal((await hear(untilStartTls, [bytes(3), bytes(option(5), option(3))])).end, early)
  },
)

t.test(
  'whatever a client says, it ends with a reason, and what it is told stays small',
  async () => {
    const anything = fc.uint8Array({ maxLength: 60 }).map(part => Buffer.from(part))
    const anOption = fc
      .tuple(fc.nat({ max: 12 }), fc.uint8Array({ maxLength: 200 }))
      .map(([number, content]) => option(number, Buffer.from(content)))
    const piece = fc.oneof(anything, anOption, anOption)
    await fc.assert(
      fc.asyncProperty(fc.boolean(), fc.array(piece, { maxLength: 80 }), async (greets, pieces) => {
        const { said, end } = await hear(untilStartTls, greets ? [bytes(3), ...pieces] : pieces)
        return (typeof end === 'string' || end === 3 || end === 1) && said.length < 5000
      }),
      { numRuns: 200, seed: 1 },
    )
  },
)

t.test('an unknown reason of OpenSSL is passed on', async t => {
  t.equal(whyNotBelieved('CERT_REVOKED'), 'is revoked')
  t.match(whyNotBelieved('CERT_NOT_YET_VALID'), /clocks/)
  t.equal(whyNotBelieved('NEW_CODE'), 'cannot be verified (NEW_CODE)')
})
