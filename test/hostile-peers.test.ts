// Peers that mean harm: a gate against the standby, a client against a real serve. Memory and time stay bounded, the error is
// named, and others are served meanwhile.

import t, { type Test } from 'tap'
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { pino } from 'pino'
import { cloneConfig } from '../client/config/effective.ts'
import { standbySchema } from '../client/config/schema.ts'
import { openGate, type Gate } from '../client/source/gate.ts'
import { sourcePaths } from '../server/config/paths.ts'
import { sourceSchema } from '../server/config/schema.ts'
import { askServe } from '../server/serve/client.ts'
import { serve } from '../server/serve/serve.ts'
import { createLease, makeRoom, type Lease } from '../server/session/lease.ts'
import { createStarts } from '../server/session/starts.ts'
import type { Virsh } from '../server/libvirt/virsh.ts'
import { parseConfig } from '../shared/config.ts'
import { Failure } from '../shared/failures.ts'
import { rpcConnection } from '../shared/rpc.ts'

const MIB = 1024 * 1024
/** What a hostile peer may make this process take, at most: two sides' buffers, and what the collector has not seen yet. */
const MOST_BYTES = 300 * MIB
const HELLO = { protocol: { min: 1, max: 1 }, version: '0', clockMs: 0 }

/** The most memory that was taken while something ran, beyond what was taken before. */
async function growth(work: () => Promise<unknown>): Promise<number> {
  const before = process.memoryUsage().rss
  let most = before
  const timer = setInterval(() => (most = Math.max(most, process.memoryUsage().rss)), 20)
  await work().finally(() => clearInterval(timer))
  return most - before
}

/** A gate that is this command. */
async function gateOf(t: Test, ...command: string[]): Promise<Gate> {
  const text = `sources: { alpha: { transport: unix, gateCommand: ${JSON.stringify(command)} } }\ndomains: { web: { source: alpha } }\n`
  const { source } = cloneConfig(parseConfig('standby.yaml', text, standbySchema), 'web')
  const gate = await openGate(source, new AbortController().signal)
  t.teardown(() => gate[Symbol.asyncDispose]())
  return gate
}

const shell = (script: string): string[] => ['sh', '-c', script]
/** Answers each line by `answer(message, say)`. */
const scripted = (answer: string): string[] => [
  ...['env', '-u', 'NODE_OPTIONS', process.execPath, '-e'],
  `const say = one => process.stdout.write((typeof one === 'string' ? one : JSON.stringify({ jsonrpc: '2.0', ...one })) + '\\n'); require('readline').createInterface({ input: process.stdin }).on('line', line => { const { id, method } = JSON.parse(line); ${answer} })`,
]
const GREETED = `{ protocol: 1, version: '1', clockMs: 1, hostId: '6b0f2d7e-3b57-4c83-9e0c-2f1f0f4b6a01', role: 'source', epoch: 0 }`

t.test('a hostile gate is named, in bounded time and memory', async t => {
  const table: [what: string, command: string[], code: string, says: RegExp][] = [
    [
      'an endless line',
      shell(`tr '\\0' x </dev/zero`),
      'SOURCE_UNREACHABLE',
      /message over 4194304/,
    ],
    [
      'a header that announces 4 GiB',
      shell(`printf 'Content-Length: 4294967296\\r\\n\\r\\n'; exec sleep 60`),
      'SOURCE_UNREACHABLE',
      /a line that is not JSON/,
    ],
    [
      'notifications without end',
      shell(`yes '{"jsonrpc":"2.0","method":"session.ended","params":{"token":"x"}}'`),
      'SOURCE_UNREACHABLE',
      /did not answer hello within 3 s/,
    ],
    [
      'questions without end',
      shell(`yes '{"jsonrpc":"2.0","method":"hello","id":1}'`),
      'SOURCE_UNREACHABLE',
      /asks twice under one id|did not answer hello/,
    ],
    [
      'words on stderr without end',
      shell(`exec 3>&1; exec yes 'hello hello hello' >&2`),
      'SOURCE_UNREACHABLE',
      /did not answer hello within 3 s/,
    ],
    [
      'a prototype for an answer',
      scripted(
        `say('{"jsonrpc":"2.0","id":' + id + ',"result":{"__proto__":{"protocol":1,"xyzzy":1}}}')`,
      ),
      'TRANSFER',
      /answered hello wrongly/,
    ],
    [
      'an answer to something else',
      scripted(`say({ id: id + 1000, result: ${GREETED} })`),
      'SOURCE_UNREACHABLE',
      /did not answer hello within 3 s/,
    ],
    [
      'an error that is no text',
      scripted(`say({ id, error: { code: 'x', message: 7 } })`),
      'SOURCE_UNREACHABLE',
      /no JSON-RPC message/,
    ],
  ]
  const began = performance.now()
  const grown = await growth(() =>
    Promise.all(
      table.map(async ([what, command, code, message]) => {
        const gate = await gateOf(t, ...command)
        await t.rejects(gate.call('hello', HELLO, { timeoutMs: 3000 }), { code, message }, what)
        await gate[Symbol.asyncDispose]()
      }),
    ),
  )
  t.ok(grown < MOST_BYTES, `${Math.round(grown / MIB)} MiB for all of them`)
  t.ok(performance.now() - began < 30_000, 'in time')
  t.notOk('xyzzy' in {})
})

t.test('a gate that answers twice is believed once, and stays in step', async t => {
  const twice = `say({ id, result: ${GREETED} }); say({ id, result: { ...${GREETED}, role: 'standby' } })`
  const gate = await gateOf(t, ...scripted(twice))
  for (let count = 0; count < 3; count++)
    t.match(await gate.call('hello', HELLO, { timeoutMs: 5000 }), { role: 'source' })
})

/** A serve whose libvirt knows one domain, and notes what it is asked. */
async function aServe(t: Test): Promise<{ socket: string; asked: string[]; journals: string }> {
  const dir = mkdtempSync(path.join(tmpdir(), 'nbd-clone-test-'))
  const config = parseConfig(
    'source.yaml',
    `runDir: ${dir}/run\nstateDir: ${dir}/state\ndomains: { web: { overlayDir: ${dir} } }\n`,
    sourceSchema,
  )
  const asked: string[] = []
  const refuse = (args: readonly string[]): never => {
    asked.push(args.join(' '))
    throw new Failure('SOURCE_REFUSED', 'virsh: not here')
  }
  const virsh: Virsh = {
    uri: 'qemu:///system',
    run: args => Promise.resolve(args).then(refuse),
    text: args => Promise.resolve(args).then(refuse),
    monitor: () => ({ execute: () => Promise.reject(new Failure('SOURCE_REFUSED', 'not here')) }),
  }
  const paths = sourcePaths(config, path.join(dir, 'source.yaml'))
  mkdirSync(path.join(dir, 'clients'))
  for (const client of ['mad', 'honest'])
    writeFileSync(path.join(dir, 'clients', `${client}.yaml`), 'domains: all\n')
  const log = pino({ level: 'silent' })
  const stop = new AbortController()
  await new Promise<void>((ready, failed) => {
    const source = { config, paths, virsh, starts: createStarts(), log }
    const over = serve(source, stop.signal, ready)
    over.catch(failed)
    t.teardown(async () => {
      stop.abort()
      await over
      rmSync(dir, { recursive: true, force: true })
    })
  })
  return { socket: paths.serveSocket, asked, journals: paths.journals }
}

/** A connection that has said its role. */
async function gateSocket(socket: string, client: string): Promise<Socket> {
  const peer = connect(socket)
  peer.on('error', () => undefined)
  await once(peer, 'connect')
  peer.write(`${JSON.stringify({ role: 'gate', client })}\n`)
  return peer
}

/** Another client asks now and then; what it waited for longest, milliseconds. */
async function othersWhile(socket: string, work: () => Promise<void>): Promise<number> {
  const peer = await gateSocket(socket, 'honest')
  const rpc = rpcConnection(peer, peer)
  rpc.listen()
  const over = new AbortController()
  let longest = 0
  const asking = (async () => {
    while (!over.signal.aborted) {
      const began = performance.now()
      await rpc.sendRequest('hello', HELLO)
      longest = Math.max(longest, performance.now() - began)
      await new Promise(resolve => setTimeout(resolve, 20))
    }
  })()
  await work().finally(() => over.abort())
  await asking
  rpc.dispose()
  peer.destroy()
  return longest
}

/** At its start a source looks for what it has left in any domain. */
const isOfDomain = (command: string): boolean => command !== 'list --name'

t.test('a client that asks a million times and reads nothing is let go', async t => {
  const { socket, asked, journals } = await aServe(t)
  const peer = await gateSocket(socket, 'mad')
  const closed = new Promise(resolve => peer.once('close', resolve))
  const block = (from: number): string =>
    Array.from({ length: 1000 }, (_, at) => {
      const params = { domain: 'x'.repeat(90) }
      return `${JSON.stringify({ jsonrpc: '2.0', id: from + at, method: 'describe', params })}\n`
    }).join('')
  let sent = 0
  const longest = await othersWhile(socket, async () => {
    const grown = await growth(async () => {
      peer.pause()
      const gone = new AbortController()
      void closed.then(() => gone.abort())
      const deadline = AbortSignal.any([gone.signal, AbortSignal.timeout(4000)])
      while (sent < 1_000_000 && !deadline.aborted) {
        sent += 1000
        if (!peer.write(block(sent)))
          await once(peer, 'drain', { signal: deadline }).catch(() => undefined)
      }
    })
    t.ok(grown < MOST_BYTES, `${Math.round(grown / MIB)} MiB for ${sent} questions`)
  })
  t.ok(longest < 2000, `others waited ${Math.round(longest)} ms at most`)
  peer.destroy()
  await closed
  t.strictSame(asked.filter(isOfDomain), [], 'libvirt was asked nothing')
  t.strictSame(readdirSync(journals), [], 'nothing was begun')
})

t.test('a client that opens a thousand sessions has eight, and nothing is frozen', async t => {
  const { socket, asked, journals } = await aServe(t)
  const peer = await gateSocket(socket, 'mad')
  const rpc = rpcConnection(peer, peer)
  rpc.listen()
  const opened = await Promise.allSettled(
    Array.from({ length: 1000 }, () =>
      rpc.sendRequest('session.open', { domain: 'web', want: {} }),
    ),
  )
  t.equal(opened.filter(one => one.status === 'fulfilled').length, 8)
  const [refused] = opened.filter(one => one.status === 'rejected')
  t.match(refused?.reason, {
    message: 'client mad has 8 sessions of web open already',
    data: { code: 'SOURCE_REFUSED' },
  })
  const other = await gateSocket(socket, 'honest')
  const honest = rpcConnection(other, other)
  honest.listen()
  t.match(await honest.sendRequest('session.open', { domain: 'web', want: {} }), { joined: false })
  for (const one of [rpc, honest]) one.dispose()
  peer.destroy()
  other.destroy()

  const connections = await Promise.all(
    Array.from({ length: 200 }, (_, at) => gateSocket(socket, `many${at}`)),
  )
  const role = { role: 'operator' } as const
  t.match(await askServe(socket, role, 'operator.status', {}), { domains: [{ domain: 'web' }] })
  for (const one of connections) one.destroy()
  t.strictSame(
    asked.filter(one => one.startsWith('snapshot')),
    [],
  )
  t.strictSame(readdirSync(journals), [], 'nothing was begun')
})

t.test("of the leases that are over, only a client's last ones are remembered", t => {
  const leases = new Map<string, Lease>()
  const open = (client: string): Lease => {
    makeRoom(leases, 'web', client)
    const lease = createLease('web', client, 'gate')
    leases.set(lease.token, lease)
    return lease
  }
  const other = open('honest')
  other.state = 'released'
  for (let count = 0; count < 1000; count++) open('mad').state = 'ended'
  t.equal(leases.size, 1 + 33)
  t.ok(leases.has(other.token), 'others keep theirs')
  t.end()
})
