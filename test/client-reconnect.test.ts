// Connections that are lost in the middle of a pull: a disk's, the gate's, and when that is no reason to go on.

import t, { type Test } from 'tap'
import { randomBytes } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { readdir, rm, truncate, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { pino } from 'pino'
import { NOBODY, type Watcher } from '../client/attempt.ts'
import { pullCommand } from '../client/commands/pull.ts'
import { cloneConfig, loadConfig, type CloneConfig } from '../client/config/effective.ts'
import { pull } from '../client/pull.ts'
import type { PullOptions } from '../client/pulled.ts'
import type { Retry } from '../client/source/back-off.ts'
import { lastingConnection, type Lasting } from '../client/source/lasting.ts'
import { soundGenerations } from '../client/store/generation.ts'
import { lockClone } from '../client/store/guard.ts'
import { layoutOf, makeFolders } from '../client/store/layout.ts'
import { Failure } from '../shared/failures.ts'
import type { Outcome } from '../shared/gate.ts'
import { NbdError, type NbdConnection } from '../shared/nbd/client.ts'
import { DOMAIN_UUID, fakeSource, type FakeSource } from './client/fake-source.ts'
import { listProcesses } from './lab/processes.ts'

const MIB = 1024 * 1024
const log = pino({ level: 'silent' })
const never = new AbortController().signal
const VDA = Buffer.concat([randomBytes(3 * MIB), Buffer.alloc(2 * MIB), randomBytes(MIB + 512 * 7)])
const VDB = randomBytes(2 * MIB)
const SLOW = ['--filter=delay', 'rdelay=300ms']

const FROZEN: Outcome = { state: 'frozen', disks: [], refusals: [] }
const lost = (): NbdError => new NbdError('LOST', 'NBD: the server ended the connection')

/** A connection whose reads do as they are told; what it was asked for is in `asked`. */
function scripted(answer: (offset: number) => Promise<void>): NbdConnection & {
  readonly asked: number[]
  readonly gone: () => boolean
} {
  const asked: number[] = []
  let gone = false
  const nothing = () => Promise.reject(new Error('not asked for here'))
  return {
    asked,
    gone: () => gone,
    size: 100,
    readOnly: true,
    flags: 3,
    blockSize: { minimum: 1, preferred: 4096, maximum: 4096 },
    structured: false,
    metaContexts: new Map(),
    read(offset) {
      asked.push(offset)
      return answer(offset)
    },
    blockStatus: nothing,
    disconnect: () => Promise.resolve(),
    destroy: () => void (gone = true),
    closed: new Promise(() => undefined),
  }
}

const good = () => scripted(() => Promise.resolve())
const broken = (error: Error = lost()) => scripted(() => Promise.reject(error))

function lastingFrom(first: NbdConnection, connect: Lasting['connect'], giveUpMs?: number) {
  const retries: Retry[] = []
  const connection = lastingConnection(first, {
    target: 'vda',
    signal: never,
    onRetry: retry => retries.push(retry),
    connect,
    ...(giveUpMs !== undefined && { giveUpMs }),
  })
  return { connection, retries, read: (at: number) => connection.read(at, new Uint8Array(1)) }
}

t.test('all that was being read is read again over one new connection', async t => {
  const first = broken()
  const second = good()
  let connected = 0
  const { read, retries } = lastingFrom(first, () => {
    connected++
    return Promise.resolve(second)
  })
  await Promise.all([read(1), read(2), read(3)])
  await read(4)
  t.equal(connected, 1)
  t.strictSame(second.asked.sort(), [1, 2, 3, 4])
  t.ok(first.gone())
  t.strictSame(retries, [{ what: 'vda', tries: 1, reason: lost().message }])
})

t.test('the pauses between tries grow, and begin anew once a read went well', async t => {
  const began = performance.now()
  const at: number[] = []
  let present = broken()
  const { read, retries } = lastingFrom(present, () => {
    at.push(performance.now() - began)
    if (at.length < 3) return Promise.reject(new NbdError('CONNECT', 'nobody there'))
    present = scripted(offset => (offset === 2 ? Promise.reject(lost()) : Promise.resolve()))
    if (at.length === 4) present = good()
    return Promise.resolve(present)
  })
  await read(1)
  t.strictSame(
    retries.map(({ tries, reason }) => [tries, reason]),
    [
      [1, lost().message],
      [2, 'nobody there'],
      [3, 'nobody there'],
    ],
  )
  const [one = 0, two = 0, three = 0] = at
  t.ok(one >= 490 && two - one >= 990 && three - two >= 1990, at.join())
  const then = performance.now()
  await read(2)
  t.equal(retries.at(-1)?.tries, 1)
  t.ok((at[3] ?? 0) - (then - began) < 1500, at.join())
})

t.test('an answer of the server is never asked for again', async t => {
  for (const error of [
    new NbdError('REQUEST_FAILED', 'NBD: EIO', { errno: 'NBD_EIO' }),
    new NbdError('UNKNOWN_COOKIE', 'NBD: a reply to nothing'),
    new NbdError('SHORT_READ', 'NBD: bytes are missing'),
  ]) {
    const { read, retries } = lastingFrom(broken(error), () => Promise.resolve(good()))
    await t.rejects(read(1), error)
    t.strictSame(retries, [])
  }
  const over = new Failure('SOURCE_REFUSED', 'the lease lapsed', { remedy: 'look' })
  const { read, retries } = lastingFrom(broken(), () => Promise.reject(over))
  await t.rejects(Promise.all([read(1), read(2)]), {
    code: 'SOURCE_REFUSED',
    message: /ended the connection; when connecting again: the lease lapsed/,
    hint: 'look',
  })
  t.equal(retries.length, 1)
})

t.test('a read is given up in time, whatever the source does meanwhile', async t => {
  const gone = () => Promise.reject(new NbdError('CONNECT', 'nobody there'))
  const hanging = (signal: AbortSignal) =>
    new Promise<never>((_, reject) =>
      signal.addEventListener('abort', () => reject(signal.reason as Error)),
    )
  const loses = () => Promise.resolve(broken())
  for (const connect of [gone, hanging, loses]) {
    const began = performance.now()
    const { read } = lastingFrom(broken(), connect, 1_500)
    await t.rejects(read(1), { code: 'TRANSFER', message: /ended the connection; not back after/ })
    const took = performance.now() - began
    t.ok(took >= 1_000 && took < 4_000, `${connect.name} ${took}`)
  }

  const poisoned = () => scripted(at => (at === 13 ? Promise.reject(lost()) : Promise.resolve()))
  const { read, connection } = lastingFrom(poisoned(), () => Promise.resolve(poisoned()), 1_500)
  const done = new AbortController()
  const reading = (async () => {
    for (let at = 20; !done.signal.aborted; at++) await Promise.all([read(at), sleep(20)])
  })()
  await t.rejects(read(13), { code: 'TRANSFER', message: /again and again|not back/ })
  done.abort()
  await reading
  t.pass('although all others went well')
  connection.destroy()
})

t.test('who ends it does not wait for a connection, and none is left', async t => {
  const over = new Error('enough')
  const pausing = lastingFrom(broken(), () => Promise.resolve(good()))
  const read = pausing.read(1)
  await sleep(50)
  const began = performance.now()
  pausing.connection.destroy(over)
  await t.rejects(read, over)
  t.ok(performance.now() - began < 300)
  t.strictSame(pausing.retries, [])

  const late = good()
  let arrive: (connection: NbdConnection) => void = () => undefined
  const coming = lastingFrom(broken(), () => new Promise(resolve => (arrive = resolve)))
  const second = coming.read(1)
  while (coming.retries.length === 0) await sleep(20)
  coming.connection.destroy(over)
  arrive(late)
  await t.rejects(second, over)
  t.ok(late.gone(), 'also one that comes too late')
})

async function aSource(t: Test): Promise<FakeSource> {
  const source = await fakeSource({ vda: VDA, vdb: VDB })
  t.teardown(() => source[Symbol.asyncDispose]())
  await source.serveNbd(SLOW)
  const { handlers } = source
  const merged = handlers.outcome
  handlers.outcome = params => (source.calls.includes('session.release') ? merged(params) : FROZEN)
  return source
}

/** A gate that can be sent away: then it ends as ssh does that finds no route. */
function cloneOf(source: FakeSource): CloneConfig {
  const clone = cloneConfig(loadConfig(source.configFile), 'mydomain')
  const away = `test ! -e ${source.dir}/away || { echo "No route to host" >&2; exit 255; }; exec "$@"`
  const gateCommand = ['sh', '-c', away, 'gate', ...clone.source.gateCommand]
  return { ...clone, source: { ...clone.source, gateCommand } }
}
const sendAway = (source: FakeSource) => writeFile(path.join(source.dir, 'away'), '')
const letBack = (source: FakeSource) => rm(path.join(source.dir, 'away'))

function pullFrom(source: FakeSource, options: Partial<PullOptions> = {}) {
  return pull(cloneOf(source), {
    adopt: false,
    full: false,
    signal: never,
    log,
    watcher: NOBODY,
    ...options,
  })
}

/** Does something once, in the middle of the copy. */
function inTheMiddle(happen: () => unknown): Watcher {
  return {
    ...NOBODY,
    phase: name => {
      if (name === 'copy') setTimeout(() => void happen(), 100)
    },
  }
}

/** SIGKILLs the gate's child of this very source. */
function killGate(source: FakeSource): void {
  const [gate] = listProcesses().filter(
    ({ pid, parent }) =>
      parent === process.pid &&
      readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(`${source.dir}/gate.sock`),
  )
  if (!gate) throw new Error('no gate')
  process.kill(gate.pid, 'SIGKILL')
}

const lastLine = (source: FakeSource): unknown =>
  JSON.parse(
    readFileSync(layoutOf(cloneOf(source).dir).history, 'utf8')
      .trim()
      .split('\n')
      .at(-1) ?? '',
  )

async function checkPublished(t: Test, source: FakeSource): Promise<void> {
  const { dir } = cloneOf(source)
  const current = path.join(dir, 'current')
  t.ok(readFileSync(path.join(current, 'vda.raw')).equals(VDA))
  t.ok(readFileSync(path.join(current, 'vdb.raw')).equals(VDB))
  t.equal((await soundGenerations(dir)).length, 1)
  t.equal(source.gates(), 0, 'no gate is left')
}

async function checkNothing(t: Test, source: FakeSource): Promise<void> {
  const layout = layoutOf(cloneOf(source).dir)
  t.strictSame(await soundGenerations(layout.dir), [])
  t.equal(source.gates(), 0, 'no gate is left')
  lockClone(layout, 'test')()
}

t.test('an NBD server that dies and comes back costs the pull nothing', async t => {
  const source = await aSource(t)
  const watcher = inTheMiddle(async () => {
    source.killNbd()
    await sleep(700)
    await source.serveNbd(SLOW)
  })
  await pullFrom(source, { watcher })
  await checkPublished(t, source)
  const { reconnects } = lastLine(source) as { reconnects: number }
  t.ok(reconnects >= 2, `${reconnects} tries for two disks`)
  t.equal(source.calls.filter(call => call === 'session.open').length, 1, 'one session')
})

t.test('a connection that is lost while it is made is made anew', async t => {
  const source = await aSource(t)
  const tried = path.join(source.dir, 'tried')
  await source.serveNbd([], `if ! [ -e ${tried} ]; then touch ${tried}; kill -KILL $PPID; fi;`)
  const pulling = pullFrom(source)
  while (!existsSync(tried)) await sleep(20)
  await source.serveNbd(SLOW)
  await pulling
  await checkPublished(t, source)
  t.ok((lastLine(source) as { reconnects: number }).reconnects >= 1)
})

t.test('a gate that dies before there is a session is replaced, too', async t => {
  const source = await aSource(t)
  const { describe } = source.handlers
  let died = false
  source.handlers.describe = params => {
    if (!died) {
      died = true
      killGate(source)
    }
    return describe(params)
  }
  await pullFrom(source)
  await checkPublished(t, source)
})

t.test('what comes back must be the same bytes of the same session', async t => {
  const restart = (source: FakeSource, meanwhile: () => unknown) =>
    inTheMiddle(async () => {
      source.killNbd()
      await meanwhile()
      await source.serveNbd(SLOW)
    })
  const resized = await aSource(t)
  const grow = restart(resized, () => truncate(resized.file('vda'), VDA.length + MIB))
  await t.rejects(pullFrom(resized, { watcher: grow }), {
    code: 'TRANSFER',
    message: /ended the connection.*disk vda is another one now/,
  })
  await checkNothing(t, resized)

  const other = await aSource(t)
  const info = other.handlers['session.info']
  const change = restart(other, () => {
    other.handlers['session.info'] = async params => {
      const now = await info(params)
      const recoveryPoint = { ...now.recoveryPoint, id: '20261120T030007Z-4f2a' }
      return { ...now, recoveryPoint }
    }
  })
  await t.rejects(pullFrom(other, { watcher: change }), {
    code: 'TRANSFER',
    message: /session changed from .* to 20261120T030007Z-4f2a/,
  })
  await checkNothing(t, other)

  const over = await aSource(t)
  const end = inTheMiddle(() => {
    const reason = 'the lease lapsed: it had no connection for 60 s'
    over.handlers.outcome = () => ({ ...FROZEN, state: 'merged', reason, code: 'SOURCE_REFUSED' })
    over.killNbd()
  })
  await t.rejects(pullFrom(over, { watcher: end }), {
    code: 'SOURCE_REFUSED',
    message: /ended the connection.*the session ended: the lease lapsed/,
  })
  await checkNothing(t, over)
})

t.test('a gate that dies is replaced, and the lease goes over to the new one', async t => {
  const source = await aSource(t)
  const watcher = inTheMiddle(() => killGate(source))
  await pullFrom(source, { watcher })
  await checkPublished(t, source)
  t.match(lastLine(source), { reconnects: 1, outcome: 'merged' })
  const after = source.calls.slice(source.calls.indexOf('session.info') + 1)
  t.strictSame(after.slice(0, 2), ['hello', 'session.renew'])
})

t.test('a gate that is away for a while is waited for, also with everything read', async t => {
  const source = await aSource(t)
  const watcher = inTheMiddle(async () => {
    await sendAway(source)
    killGate(source)
    await sleep(1_200)
    await letBack(source)
  })
  await pullFrom(source, { watcher })
  await checkPublished(t, source)
})

t.test('a gate that comes back to another host, or to no session, ends the pull', async t => {
  const moved = await aSource(t)
  const hello = moved.handlers.hello
  const watcher = inTheMiddle(() => {
    moved.handlers.hello = async params => ({ ...(await hello(params)), hostId: DOMAIN_UUID })
    killGate(moved)
  })
  await t.rejects(pullFrom(moved, { watcher }), {
    code: 'UNSAFE',
    message: /its gate is gone.*is another host now/,
  })
  await checkNothing(t, moved)

  const restarted = await aSource(t)
  const forgets = inTheMiddle(() => {
    restarted.handlers['session.renew'] = () => {
      throw new Failure('SOURCE_REFUSED', 'the source does not know this token')
    }
    killGate(restarted)
  })
  await t.rejects(pullFrom(restarted, { watcher: forgets }), {
    code: 'SOURCE_REFUSED',
    message: /its gate is gone.*does not know this token/,
  })
  await checkNothing(t, restarted)
})

t.test('a gate that dies of the release: the outcome says whether it took effect', async t => {
  /** Kills the gate before it can answer, the first so many times. */
  const deadly = (source: FakeSource, times: number) => {
    const release = source.handlers['session.release']
    let killed = 0
    source.handlers['session.release'] = params => {
      if (killed++ >= times) return release(params)
      killGate(source)
      return new Promise(() => undefined)
    }
  }
  const done = await aSource(t)
  deadly(done, 1)
  await pullFrom(done)
  await checkPublished(t, done)
  t.equal(done.calls.filter(call => call === 'session.release').length, 1)

  const undone = await aSource(t)
  deadly(undone, 1)
  undone.handlers.outcome = () =>
    undone.calls.filter(call => call === 'session.release').length < 2
      ? FROZEN
      : { ...FROZEN, state: 'merged' }
  await pullFrom(undone)
  await checkPublished(t, undone)
  t.equal(undone.calls.filter(call => call === 'session.release').length, 2)

  const lapsed = await aSource(t)
  deadly(lapsed, 1)
  lapsed.handlers.outcome = () => ({
    ...FROZEN,
    state: 'merging',
    reason: 'the lease lapsed: its client went away',
  })
  await t.rejects(pullFrom(lapsed), {
    code: 'TRANSFER',
    message: /nothing is published.*the lease lapsed/,
  })
  await checkNothing(t, lapsed)

  const unmerged = await aSource(t)
  deadly(unmerged, 1)
  unmerged.handlers.outcome = () => ({
    ...FROZEN,
    state: 'failed',
    reason: 'vda: no space',
    code: 'MERGE_FAILED',
  })
  await t.rejects(pullFrom(unmerged), { code: 'MERGE_FAILED', message: /nothing is published/ })
})

t.test('Ctrl-C ends at once what waits for a source', async t => {
  for (const lose of [
    (source: FakeSource) => {
      source.killNbd()
      return Promise.resolve()
    },
    async (source: FakeSource) => {
      await sendAway(source)
      killGate(source)
    },
  ]) {
    const source = await aSource(t)
    const aborted = new AbortController()
    let began = 0
    const watcher = inTheMiddle(async () => {
      await lose(source)
      await sleep(700)
      began = performance.now()
      aborted.abort(new Failure('INTERRUPTED', 'interrupted by SIGINT'))
    })
    const failed = pullFrom(source, { watcher, signal: aborted.signal })
    await t.rejects(failed, { code: 'INTERRUPTED', exit: 130 })
    // Without it the source would be waited for, 20 s or more; the rest is clearing up on a busy machine.
    t.ok(performance.now() - began < 8_000, `${performance.now() - began} ms`)
    await checkNothing(t, source)
  }
})

t.test('a pull that takes longer than it may stops, and lets the source go', async t => {
  const source = await aSource(t)
  await source.serveNbd(['--filter=delay', 'rdelay=30000ms'])
  await t.rejects(pullFrom(source, { maxDurationMs: 1_000 }), {
    code: 'PARTLY',
    exit: 40,
    message: 'stopped after 1.0s, as told',
  })
  t.equal(source.calls.at(-1), 'session.release')
  await checkNothing(t, source)
})

t.test('the limit is lifted once everything is read', async t => {
  const source = await aSource(t)
  const limit = 12_345_678
  let timer: NodeJS.Timeout | undefined
  let lifted = false
  const real = { setTimeout, clearTimeout }
  t.teardown(() => Object.assign(globalThis, real))
  Object.assign(globalThis, {
    setTimeout: Object.assign((work: () => void, ms?: number) => {
      const made = real.setTimeout(work, ms)
      if (ms === limit) timer = made
      return made
    }, real.setTimeout),
    clearTimeout: (one: NodeJS.Timeout | undefined) => {
      lifted ||= one !== undefined && one === timer
      real.clearTimeout(one)
    },
  })
  const seen: (string | boolean)[] = []
  const phase = (name: string) => void seen.push(name, lifted)
  await pullFrom(source, { maxDurationMs: limit, watcher: { ...NOBODY, phase } })
  t.strictSame(seen, ['copy', false, 'verify', true])
})

t.test('--if-due leaves a clone alone that is being pulled, and only then', async t => {
  const source = await aSource(t)
  const layout = layoutOf(cloneOf(source).dir)
  await makeFolders(layout)
  const config = loadConfig(source.configFile)
  const run = (ifDue: boolean) => {
    const flags = {
      domains: ['mydomain'],
      all: false,
      adopt: false,
      full: false,
      dryRun: false,
      ifDue,
    }
    return pullCommand(config, flags, log, never, () => NOBODY)
  }
  const pulling = lockClone(layout, 'pull')
  t.match(await run(true), {
    exit: 0,
    results: [{ outcome: 'running', by: `process ${process.pid} (clone pull)` }],
  })
  t.match(await run(false), { exit: 30 })
  pulling()
  const pruning = lockClone(layout, 'prune')
  t.match(await run(true), { exit: 30, results: [{ failure: { code: 'LOCKED' } }] })
  pruning()
  t.strictSame(source.calls, [])
  t.strictSame(await readdir(layout.generations), [])
})
