// What both sides share: the failure table, names, quantities, cleanup, RPC by line.

import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { PassThrough } from 'node:stream'
import t from 'tap'
import { Cleanup } from '../shared/cleanup.ts'
import {
  describeFailure,
  Failure,
  FAILURES,
  toFailure,
  worstExit,
  type FailureRow,
} from '../shared/failures.ts'
import { tryLock } from '../shared/host/lock.ts'
import { openersOf } from '../shared/host/openers.ts'
import { isName, isRecoveryPointId, newRecoveryPointId } from '../shared/names.ts'
import { formatDuration, formatSize, parseSize } from '../shared/quantities.ts'
import { failureToResponse, MAX_MESSAGE, responseToFailure, rpcConnection } from '../shared/rpc.ts'

/** What JSON-RPC is not; the first made the library throw out of our hands. */
const HOSTILE: unknown[] = [
  { jsonrpc: '2.0', method: '$/cancelRequest' },
  { jsonrpc: '2.0', method: '$/progress', params: null },
  { jsonrpc: '2.0', method: 'hello', params: 'text' },
  { jsonrpc: '2.0', method: 7, id: 1 },
  { jsonrpc: '2.0', id: {}, result: 1 },
  { jsonrpc: '1.0', method: 'hello', id: 1 },
  { method: 'hello', id: 1 },
  [],
  {},
]

t.test('every failure has its own exit status, a meaning and a next step', async t => {
  const rows: FailureRow[] = Object.values(FAILURES)
  t.equal(new Set(rows.map(row => row.exit)).size, rows.length)
  for (const row of rows) t.ok(row.meaning !== '' && row.hint !== '')
  t.equal(
    describeFailure('clone', new Failure('SPACE', 'full', { remedy: 'delete' })),
    'clone: full\n  hint: delete\n  code: SPACE (exit 22)',
  )
  t.equal(toFailure(new Error('odd')).exit, 1)
  t.equal(toFailure(new DOMException('x', 'AbortError')).exit, 130)
})

t.test('of several domains the worst exit wins', async t => {
  t.equal(worstExit([]), 0)
  t.equal(worstExit([0, 0]), 0)
  t.equal(worstExit([0, 75, 20]), 20)
  t.equal(worstExit([20, 13, 14]), 13)
  t.equal(worstExit([22, 21, 0]), 21)
  t.equal(worstExit([10, 130]), 130)
  t.equal(worstExit([130, 13]), 13, 'an interruption does not hide a source on its overlay')
  t.equal(worstExit([1, 75]), 75)
})

t.test('names are words, never paths or options', async t => {
  for (const good of ['mydomain', 'web-1.example', '_x', 'a@b', '0']) t.ok(isName(good), good)
  for (const bad of [
    '',
    '-x',
    '.x',
    '../x',
    'a/b',
    'a b',
    'a\n',
    "a'b",
    'a%s',
    'ä',
    'x'.repeat(101),
  ])
    t.notOk(isName(bad), bad)
  const id = newRecoveryPointId(new Date('2026-11-20T03:00:07.123Z'))
  t.match(id, /^20261120T030007Z-[0-9a-f]{4}$/)
  t.ok(isRecoveryPointId(id))
})

t.test('sizes and durations read as people write them', async t => {
  t.equal(parseSize('20MiB'), 20 * 1024 ** 2)
  t.equal(parseSize('1.5 GiB'), 1.5 * 1024 ** 3)
  t.equal(parseSize('4096'), 4096)
  for (const bad of ['', '20MB', '-1', '1e9', '99999999 TiB'])
    t.equal(parseSize(bad), undefined, bad)
  t.equal(formatSize(0), '0 B')
  t.equal(formatSize(1536), '1.5 KiB')
  t.equal(formatDuration(850), '0.8s')
  t.equal(formatDuration(59_000), '59s')
  t.equal(formatDuration(11_580_000), '3h 13m')
  t.equal(formatDuration(3 * 86400_000 + 3600_000), '3d 1h')
})

t.test('cleanup runs every step, last first, and then throws the first error', async t => {
  const ran: string[] = []
  const run = async (): Promise<void> => {
    await using cleanup = new Cleanup()
    cleanup.defer(() => ran.push('first'))
    cleanup.defer(() => {
      ran.push('second')
      throw new Error('second failed')
    })
    cleanup.defer(() => ran.push('forgotten'))()
    cleanup.defer(() => ran.push('third'))
  }
  await t.rejects(run(), { message: 'second failed' })
  t.strictSame(ran, ['third', 'second', 'first'])
})

t.test('a lock is held by one, names its holder and is free again after', async t => {
  const directory = mkdtempSync(path.join(tmpdir(), 'nbd-clone-test-'))
  t.teardown(() => rmSync(directory, { recursive: true }))
  const file = path.join(directory, 'lock')
  const free = tryLock(file, 'pid 1')
  t.strictSame(tryLock(file, 'pid 2'), { heldBy: 'pid 1' })
  t.ok((await openersOf(file)).some(one => one.pid === process.pid && one.writes))
  if (typeof free === 'function') free()
  const again = tryLock(file, 'pid 3')
  t.type(again, 'function')
  if (typeof again === 'function') again()
})

t.test('RPC by line carries answers, and failures with code and remedy', async t => {
  const there = new PassThrough()
  const back = new PassThrough()
  const client = rpcConnection(back, there)
  const server = rpcConnection(there, back)
  server.onRequest('add', ({ a, b }: { a: number; b: number }) => a + b)
  server.onRequest('fail', () =>
    failureToResponse(new Failure('SPACE', 'no room', { remedy: 'make some' })),
  )
  client.listen()
  server.listen()
  t.equal(await client.sendRequest('add', { a: 1, b: 2 }), 3)
  const error = await client.sendRequest('fail', {}).then(
    () => undefined,
    (reason: unknown) => responseToFailure(reason, 'INTERNAL'),
  )
  t.match(error, { code: 'SPACE', message: 'no room', remedy: 'make some' })
  client.dispose()
  server.dispose()
})

t.test('a peer cannot make us buffer more than one bounded line, nor survive nonsense', async t => {
  for (const sent of [
    Buffer.alloc(MAX_MESSAGE + 1, 120),
    Buffer.from('not json\n'),
    Buffer.from('17\n'),
    ...HOSTILE.map(message => Buffer.from(`${JSON.stringify(message)}\n`)),
  ]) {
    const input = new PassThrough()
    const connection = rpcConnection(input, new PassThrough())
    const failed = new Promise<string>(resolve =>
      connection.onError(([error]) => resolve(error.message)),
    )
    connection.listen()
    input.write(sent)
    t.match(await failed, /^peer sent/)
    t.ok(input.destroyed)
    connection.dispose()
  }
})

t.test('a peer that asks a lot is read again once it has answers', async t => {
  const [input, output] = [new PassThrough(), new PassThrough()]
  output.resume()
  const connection = rpcConnection(input, output)
  const waiting: (() => void)[] = []
  let asked = 0
  let most = 0
  connection.onRequest('wait', async () => {
    asked++
    await new Promise<void>(resolve => waiting.push(resolve))
    return {}
  })
  connection.listen()
  for (let id = 0; id < 2500; id++)
    input.write(`${JSON.stringify({ jsonrpc: '2.0', id, method: 'wait' })}\n`)
  const turns = async (count: number): Promise<void> => {
    for (let turn = 0; turn < count; turn++) await new Promise(resolve => setImmediate(resolve))
  }
  while (asked < 2500) {
    await turns(1500)
    most = Math.max(most, waiting.length)
    for (const answer of waiting.splice(0)) answer()
  }
  t.equal(most, 1000)
  connection.dispose()
})

t.test('one id is for one question at a time, and what came before the end is heard', async t => {
  const line = (id: number): string => `${JSON.stringify({ jsonrpc: '2.0', id, method: 'wait' })}\n`
  for (const [text, heard, fault] of [
    [line(1) + line(1), 1, /^peer asks twice under one id: 1$/],
    [line(1) + line(2) + line(3), 3, undefined],
  ] as const) {
    const input = new PassThrough()
    const connection = rpcConnection(input, new PassThrough())
    let asked = 0
    let said: string | undefined
    connection.onRequest('wait', () => {
      asked++
      return new Promise(() => undefined)
    })
    connection.onError(([error]) => (said = error.message))
    const over = new Promise<void>(resolve => connection.onClose(() => resolve()))
    connection.listen()
    input.end(text)
    await over
    while (asked < heard) await new Promise(resolve => setImmediate(resolve))
    t.equal(asked, heard)
    if (fault) t.match(said, fault)
    else t.equal(said, undefined)
    connection.dispose()
  }
})

t.test('a peer that floods waits for its turn, and nothing is kept for it meanwhile', async t => {
  const input = new PassThrough()
  const connection = rpcConnection(input, new PassThrough().resume())
  let handled = 0
  connection.onNotification('ping', () => {
    handled++
  })
  connection.listen()
  const many = Buffer.from(`${JSON.stringify({ jsonrpc: '2.0', method: 'ping' })}\n`.repeat(1000))
  const flood = async (chunks: number): Promise<void> => {
    for (let sent = 0; sent < chunks; sent++) if (!input.write(many)) await once(input, 'drain')
  }
  const flooded = flood(20)
  await new Promise(resolve => setImmediate(resolve))
  t.ok(handled < 100, `${handled} at once`)
  t.ok(input.isPaused(), 'the stream waits, and with it the peer')
  t.ok(input.readableLength + input.writableLength < 4 * many.length)
  await flooded
  const end = Date.now() + 20_000
  while (handled < 20_000 && Date.now() < end) await new Promise(resolve => setImmediate(resolve))
  t.equal(handled, 20_000, 'and every one is answered')
  connection.dispose()
})
