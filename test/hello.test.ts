// hello between versions, by messages as another version would send them.

import { createVisitor } from '../server/clients/visitor.ts'
import { LOCAL } from '../server/clients/rights.ts'
import t, { type Test } from 'tap'
import { PassThrough } from 'node:stream'
import { pino } from 'pino'
import { cloneConfig, loadConfig } from '../client/config/effective.ts'
import { openGate } from '../client/source/gate.ts'
import { greet } from '../client/source/session.ts'
import { serveGate } from '../server/gate/methods.ts'
import type { Domains } from '../server/serve/domains.ts'
import type { Source } from '../server/source.ts'
import { agree } from '../shared/protocol.ts'
import { rpcConnection } from '../shared/rpc.ts'
import { VERSION } from '../shared/version.ts'
import { fakeSource, HOST_ID } from './client/fake-source.ts'

t.test('the highest version that both speak is used, or both are named', t => {
  const table: [source: [number, number], standby: [number, number], is: number | RegExp][] = [
    [[1, 1], [1, 1], 1],
    [[1, 3], [1, 2], 2],
    [[1, 2], [2, 5], 2],
    [[2, 5], [1, 2], 2],
    [[1, 1], [2, 3], /source speaks 1 \(nbd-clone 0\.9\), the standby 2 to 3 \(nbd-clone 0\.8\)/],
    [[2, 3], [1, 1], /source speaks 2 to 3 \(nbd-clone 0\.9\), the standby 1 \(/],
    [[1, 1], [1, 0], /no common gate protocol/],
  ]
  for (const [source, standby, is] of table) {
    const speaks = ([min, max]: [number, number], version: string) => ({ min, max, version })
    const action = () => agree(speaks(source, '0.9'), speaks(standby, '0.8'))
    if (typeof is === 'number') t.equal(action(), is, `${String(source)} and ${String(standby)}`)
    else t.throws(action, { code: 'SOURCE_REFUSED', message: is })
  }
  const fix = (source: number, standby: number) => () =>
    agree({ min: source, max: source, version: 'a' }, { min: standby, max: standby, version: 'b' })
  t.throws(fix(1, 2), { code: 'SOURCE_REFUSED', remedy: 'update nbd-clone on the source' })
  t.throws(fix(2, 1), { code: 'SOURCE_REFUSED', remedy: 'update nbd-clone on the standby' })
  t.end()
})

/** What this source answers to one line. */
async function answerTo(message: object): Promise<unknown> {
  const [input, output] = [new PassThrough(), new PassThrough()]
  const rpc = rpcConnection(input, output)
  const source = { log: pino({ level: 'silent' }) } as unknown as Source
  serveGate(rpc, createVisitor('/nowhere', { client: LOCAL }, true), source, {} as Domains, HOST_ID)
  rpc.listen()
  input.write(`${JSON.stringify(message)}\n`)
  const [line] = (await new Promise<Buffer>(resolve => output.once('data', resolve)))
    .toString()
    .split('\n')
  rpc.dispose()
  return JSON.parse(line ?? '') as unknown
}

t.test('a source answers clients of other versions', async t => {
  const hello = (params: object) => ({ jsonrpc: '2.0', id: 1, method: 'hello', params })
  const first = { protocol: { min: 1, max: 1 }, version: '0.1.0', clockMs: 1 }
  const good = { result: { protocol: 1, version: VERSION, hostId: HOST_ID } }
  t.match(await answerTo(hello(first)), good, 'as the first version says it')
  const newer = {
    ...{ ...first, protocol: { min: 1, max: 7, preferred: 3 }, version: '4.0.0' },
    features: ['teleport'],
    clone: { name: 'web', role: 'standby', epoch: 0, colour: 'green' },
    mood: { good: true },
  }
  t.match(await answerTo(hello(newer)), good, 'what is not known is passed over')
  t.match(await answerTo(hello({ ...first, protocol: { min: 2, max: 3 }, version: '4.0.0' })), {
    error: {
      message: `no common gate protocol: the source speaks 1 (nbd-clone ${VERSION}), the standby 2 to 3 (nbd-clone 4.0.0)`,
      data: { code: 'SOURCE_REFUSED', remedy: 'update nbd-clone on the source' },
    },
  })
})

async function greeted(t: Test, answer: object): Promise<unknown> {
  const source = await fakeSource({ vda: Buffer.alloc(512) })
  t.teardown(() => source[Symbol.asyncDispose]())
  const usual = source.handlers.hello
  source.handlers.hello = async params => ({ ...(await usual(params)), ...answer })
  const clone = cloneConfig(loadConfig(source.configFile), 'mydomain')
  const gate = await openGate(clone.source, new AbortController().signal)
  t.teardown(() => gate[Symbol.asyncDispose]())
  return greet(gate, clone, { role: 'standby', epoch: 0 }, new AbortController().signal)
}

t.test('a standby greets sources of other versions', async t => {
  const newer = { version: '4.0.0', features: ['digests', 'teleport'], mood: { good: true } }
  t.match(await greeted(t, newer), { hostId: HOST_ID, features: ['digests', 'teleport'] })
  t.match(await greeted(t, { features: undefined }), { features: [] }, 'one before features')
  await t.rejects(greeted(t, { protocol: 2, version: '4.0.0' }), {
    code: 'SOURCE_REFUSED',
    message: `no common gate protocol: the source speaks 2 (nbd-clone 4.0.0), the standby 1 (nbd-clone ${VERSION})`,
    remedy: 'update nbd-clone on the standby',
  })
})
