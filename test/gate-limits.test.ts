// What a client of the gate may cost: how much it may have open and ask, what becomes of one that is refused, and that a
// refusal is in the log whatever the client said.

import { once } from 'node:events'
import type { Socket } from 'node:net'
import { PassThrough } from 'node:stream'
import t, { type Test } from 'tap'
import { runGate } from '../server/gate/gate.ts'
import { connectToServe, openServeLink, type ServeLink } from '../server/serve/client.ts'
import { smallSource, type SmallSource } from './server/small-source.ts'

const HELLO = { protocol: { min: 1, max: 1 }, version: '0', clockMs: 0 }

const aSource = (t: Test): Promise<SmallSource> =>
  smallSource(t, { web: { vda: Buffer.alloc(4096) } })

async function gate(t: Test, { serveSocket }: SmallSource, client: string): Promise<ServeLink> {
  const link = await openServeLink(serveSocket, { role: 'gate', client })
  t.teardown(() => link[Symbol.dispose]())
  return link
}

t.test('a client has so many gates, and so many questions at once', async t => {
  const source = await aSource(t)
  for (const client of ['alice', 'bob']) await source.authorize(client, '{ domains: all }')
  const gates = await Promise.all(Array.from({ length: 16 }, () => gate(t, source, 'alice')))
  await Promise.all(gates.map(one => one.ask('hello', HELLO)))
  await t.rejects((await gate(t, source, 'alice')).ask('hello', HELLO), {
    code: 'SOURCE_REFUSED',
    message: 'client alice has 16 gates open already',
  })
  t.ok(await (await gate(t, source, 'bob')).ask('hello', HELLO))

  // One that asks and never reads is owed so much, and then cut off; its question comes back in each answer.
  const socket = await connectToServe(source.serveSocket, { role: 'gate', client: 'bob' })
  const ended = new Promise<void>(resolve =>
    socket.on('error', () => resolve()).on('close', resolve),
  )
  const before = process.memoryUsage().rss
  const id = 'x'.repeat(20_000)
  const question = (at: number): string =>
    `${JSON.stringify({ jsonrpc: '2.0', id: `${at}${id}`, method: 'hello', params: HELLO })}\n`
  let asked = 0
  const flood = async (): Promise<void> => {
    for (; !socket.destroyed && asked < 100_000; asked++)
      if (!socket.write(question(asked))) await once(socket, 'drain')
  }
  await Promise.race([ended, flood().catch(() => undefined)])
  t.ok(asked > 100 && asked < 10_000, `cut off after ${asked} questions`)
  t.ok(process.memoryUsage().rss - before < 200 * 1024 * 1024)
  t.ok(await (await gate(t, source, 'bob')).ask('hello', HELLO), 'and others are answered')
})

/** A gate of alice's that keeps its end open, and what came out of it until serve closed its own. */
async function kept(
  t: Test,
  { serveSocket }: SmallSource,
): Promise<{ socket: Socket; heard: Promise<string>; ms: Promise<number> }> {
  const socket = await connectToServe(serveSocket, { role: 'gate', client: 'alice' })
  t.teardown(() => socket.destroy())
  const since = performance.now()
  let said = ''
  socket.on('data', (part: Buffer) => (said += part.toString()))
  const ended = once(socket, 'end')
  return { socket, heard: ended.then(() => said), ms: ended.then(() => performance.now() - since) }
}

t.test(
  'a gate over the limit is answered once and ended; one that asks nothing, after 5 s',
  async t => {
    const source = await aSource(t)
    await source.authorize('alice', '{ domains: all }')
    const gates = await Promise.all(Array.from({ length: 16 }, () => gate(t, source, 'alice')))
    await Promise.all(gates.map(one => one.ask('hello', HELLO)))
    const silent = await kept(t, source)
    const asking = await kept(t, source)
    const hello = JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'hello', params: HELLO })
    asking.socket.write(`${hello}\n`)
    t.match(JSON.parse(await asking.heard), {
      error: {
        message: 'client alice has 16 gates open already',
        data: { code: 'SOURCE_REFUSED' },
      },
    })
    t.ok((await asking.ms) < 4000)
    t.equal(await silent.heard, '')
    const ms = await silent.ms
    t.ok(ms > 4000 && ms < 15_000, `${ms} ms`)
    gates[0]?.[Symbol.dispose]()
    const again = async (): Promise<boolean> =>
      (await gate(t, source, 'alice')).ask('hello', HELLO).then(
        () => true,
        () => false,
      )
    while (!(await again()));
    t.pass('where one has gone there is room for another')
  },
)

t.test('a command that is refused is in the log, however long its escapes make it', async t => {
  const source = await aSource(t)
  await source.authorize('alice', '{ domains: all }')
  for (const [at, original] of ['cat', '\x01'.repeat(300), '\ud800'.repeat(300)].entries()) {
    const ssh = { SSH_ORIGINAL_COMMAND: original, SSH_CONNECTION: '192.0.2.7 1 192.0.2.8 22' }
    const run = runGate(source.serveSocket, 'alice', ssh, new PassThrough(), new PassThrough())
    await t.rejects(run, { code: 'SOURCE_REFUSED', message: /is not allowed with this key$/ })
    const refused = source.logged.filter(({ msg }) => msg === 'refused')
    t.equal(refused.length, at + 1)
    t.match(refused.at(-1), { client: 'alice', peer: '192.0.2.7', what: /^the command "/ })
  }
})
