// What a client may cost the source before it has shown who it is: time, processes, memory. Real processes, raw bytes.

import { EventEmitter, once } from 'node:events'
import { readFileSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import t from 'tap'
import { connectNbd } from '../shared/nbd/client.ts'
import { requires } from './nbd/requires.ts'
import { bytes, greeting, pattern, text } from './nbd/wire.ts'
import { tlsSource, type TlsSource } from './tls/source.ts'

const STARTTLS = bytes(text('IHAVEOPT'), 5, 0)
const option = (number: number, data: Buffer = Buffer.alloc(0)): Buffer =>
  bytes(text('IHAVEOPT'), number, data.length, data)

/** A client that says whatever it likes. @returns what it heard until the end, and after how many ms that came */
async function raw(
  source: TlsSource,
  talk: (socket: Socket) => void | Promise<void>,
): Promise<{ heard: Buffer; ms: number }> {
  const started = performance.now()
  const socket = connect(source.port, '127.0.0.1')
  const heard: Buffer[] = []
  socket.on('data', (part: Buffer) => heard.push(part)).on('error', () => undefined)
  // Not events.once: it fails at a reset, which is as good an end as any.
  const closed = new Promise(resolve => socket.once('close', resolve))
  await talk(socket)
  await closed
  return { heard: Buffer.concat(heard), ms: performance.now() - started }
}

async function hear(socket: Socket, count: number): Promise<void> {
  for (let length = 0; length < count;)
    length += ((await once(socket, 'data')) as [Buffer])[0].length
}

/** One option a second, each of them fine. @param answered called when the first was */
async function drip(socket: Socket, answered: () => unknown): Promise<void> {
  socket.write(bytes(3, option(3)))
  await hear(socket, 38)
  answered()
  while (!socket.destroyed) {
    socket.write(option(3))
    await delay(1000)
  }
}

t.test('what a client may cost', { skip: requires('nbd-server', 'setpriv') }, async t => {
  const source = await tlsSource(t, { web: pattern(2 ** 20) })
  const folder = await source.issue('standby1')
  const pem = (name: string): string => readFileSync(path.join(folder, `${name}.pem`), 'utf8')
  const tls = { ca: pem('ca-cert'), cert: pem('client-cert'), key: pem('client-key') }
  const at = { host: 'localhost', port: source.port }
  source.authorize('standby1', ['web'])

  t.test('a client without TLS is told that it is required', async t => {
    const plain = connectNbd(at, { exportName: 'web/vda' })
    t.match(await plain.catch((error: unknown) => error), {
      code: 'SOURCE_REFUSED',
      reply: 'NBD_REP_ERR_TLS_REQD',
    })
  })

  t.test('what breaks the protocol before TLS ends at once, and nothing is said', async t => {
    const table: [what: string, said: Buffer, reason: RegExp][] = [
      ['no NBD', Buffer.from('GET / HTTP/1.0\r\n\r\n'), /client flags 0x47455420/],
      ['an option that is none', bytes(3, text('IHAVENOT'), 5, 0), /option that starts with/],
      [
        'an option of 4 GiB',
        bytes(3, text('IHAVEOPT'), 7, 'ffffffff'),
        /an option of 4294967295 bytes/,
      ],
      [
        'endless options',
        bytes(3, ...Array.from({ length: 65 }, () => option(3))),
        /more than 64 options/,
      ],
      ['bytes slipped in before TLS', bytes(3, STARTTLS, option(3)), /bytes that nobody asked for/],
    ]
    for (const [what, said, reason] of table) {
      const { ms } = await raw(source, socket => void socket.write(said))
      t.ok(ms < 9000, what)
      await source.logged({ msg: 'TLS client refused', reasonLike: reason })
    }
  })

  t.test('garbage in place of a TLS handshake ends it', async t => {
    const { heard } = await raw(source, async socket => {
      socket.write(bytes(3, STARTTLS))
      // The greeting, and the answer to STARTTLS.
      await hear(socket, 38)
      socket.write(Buffer.alloc(1000, 7))
    })
    t.ok(heard.subarray(0, 18).equals(greeting()))
    await source.logged({ msg: 'TLS client refused', reasonLike: /broke off the TLS handshake/ })
  })

  t.test('a slow drip of options ends after 10 seconds, and who waited is served', async t => {
    // The others come when its process runs: starting all of theirs may take seconds.
    const first = new EventEmitter()
    const dripping = raw(source, socket => drip(socket, () => first.emit('answered')))
    await once(first, 'answered')
    const silent = Array.from({ length: 15 }, () => raw(source, () => undefined))
    while ((await source.counts()).unknown < 16) await delay(50)
    const waiting = connectNbd(at, { exportName: 'web/vda', tls })
    const { ms, heard } = await dripping
    t.ok(ms > 9000 && ms < 16_000, `after ${Math.round(ms)} ms`)
    t.ok(heard.length > 38, 'it was answered meanwhile')
    await source.logged({ msg: 'a TLS client that was not admitted within 10 s is ended' })
    const nbd = await waiting
    await nbd.read(0, new Uint8Array(512))
    nbd.destroy()
    await Promise.all(silent)
  })

  t.test('a hundred clients at once stay bounded, and the end of the source is theirs', async t => {
    const silent = Array.from({ length: 100 }, () => raw(source, () => undefined))
    for (let counts = await source.counts(); ; counts = await source.counts()) {
      t.ok(counts.unknown <= 16 && counts.running + counts.waiting <= 64, JSON.stringify(counts))
      if (counts.unknown === 16 && counts.waiting === 48) break
      await delay(50)
    }
    await Promise.race(silent)
    await source.stop()
    const ends = await Promise.all(silent)
    t.ok(Math.max(...ends.map(({ ms }) => ms)) < 20_000)
  })
})
