// A pull, end to end: a gate that speaks JSON-RPC through a real child, nbdkit for the bytes, a real store.

import t, { type Test } from 'tap'
import { execFileSync, spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { closeSync, openSync, readdirSync, readFileSync, writeSync } from 'node:fs'
import { mkdir, readdir, readlink, rm, truncate, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { pino } from 'pino'
import { NOBODY, type Watcher } from '../client/attempt.ts'
import { listCommand } from '../client/commands/list.ts'
import { pruneCommand } from '../client/commands/prune.ts'
import { pullCommand } from '../client/commands/pull.ts'
import { statusCommand } from '../client/commands/status.ts'
import { verifyCommand } from '../client/commands/verify.ts'
import { cloneConfig, loadConfig } from '../client/config/effective.ts'
import { CHUNK_SIZE } from '../client/plan.ts'
import { pull } from '../client/pull.ts'
import type { Pulled } from '../client/pulled.ts'
import { soundGenerations } from '../client/store/generation.ts'
import { lockClone } from '../client/store/guard.ts'
import { checkHistory } from '../client/store/history.ts'
import { layoutOf, makeFolders } from '../client/store/layout.ts'
import { readState, writeState } from '../client/store/state.ts'
import { Failure } from '../shared/failures.ts'
import { DOMAIN_UUID, fakeSource, refusing, type FakeSource } from './client/fake-source.ts'

const MIB = 1024 * 1024
const log = pino({ level: 'silent' })
const never = new AbortController().signal
const VDA = Buffer.concat([randomBytes(3 * MIB), Buffer.alloc(5 * MIB), randomBytes(MIB + 512 * 7)])
const VDB = Buffer.concat([Buffer.alloc(4 * MIB - 1), Buffer.from([1])])

async function aSource(t: Test, disks = { vda: VDA, vdb: VDB } as Record<string, Buffer>) {
  const source = await fakeSource(disks)
  t.teardown(() => source[Symbol.asyncDispose]())
  return source
}

const cloneOf = (source: FakeSource) => cloneConfig(loadConfig(source.configFile), 'mydomain')

function pullFrom(
  source: FakeSource,
  {
    signal = never,
    adopt = false,
    full = false,
    watcher = NOBODY,
  }: { signal?: AbortSignal; adopt?: boolean; full?: boolean; watcher?: Watcher } = {},
): Promise<Pulled> {
  return pull(cloneOf(source), { adopt, full, signal, log, watcher })
}

/** After any failed pull: nothing staged, or what the next one can use; no gate child, nothing published beyond `generations`. */
async function checkNothingLeft(
  t: Test,
  source: FakeSource,
  generations: number,
  staged: 'nothing' | 'a donor' = 'nothing',
): Promise<void> {
  const layout = layoutOf(cloneOf(source).dir)
  const names = await readdir(layout.staging)
  if (staged === 'nothing') t.strictSame(names, [], 'staging is empty')
  else t.match(names, [/Z-[0-9a-f]{4}$/], 'what was staged is kept, and nothing else')
  t.equal((await soundGenerations(layout.dir)).length, generations, 'generations')
  t.equal(source.gates(), 0, 'no gate is left')
  lockClone(layout, 'test')()
  t.strictSame((await checkHistory(layout)).problems, [], 'history is a chain')
}

const lastLine = (source: FakeSource): unknown =>
  JSON.parse(
    readFileSync(layoutOf(cloneOf(source).dir).history, 'utf8')
      .trim()
      .split('\n')
      .at(-1) ?? '',
  )

t.test('a pull publishes a verified generation that coreutils can check', async t => {
  const source = await aSource(t)
  const phases: string[] = []
  let bytes = 0
  const watcher: Watcher = {
    phase: (name, total) => phases.push(`${name} ${total}`),
    progress: count => (bytes += count),
    done: () => undefined,
  }
  const pulled = await pullFrom(source, { watcher })
  const total = VDA.length + VDB.length
  t.strictSame(phases, [`copy ${total}`, `verify ${total}`])
  t.equal(bytes, 2 * total)
  t.match(pulled, {
    seq: 1,
    source: 'merged',
    bytes: { read: total },
    omitted: [{ target: 'sda' }],
  })
  t.equal(pulled.bytes.written, 3 * MIB + MIB + 512 * 7 + 64 * 1024, 'zeros are holes')

  const current = path.join(source.store, 'mydomain', 'current')
  t.equal(await readlink(current), `generations/${pulled.recoveryPoint}`)
  t.ok(readFileSync(path.join(current, 'vda.raw')).equals(VDA))
  t.ok(readFileSync(path.join(current, 'vdb.raw')).equals(VDB))
  for (const disk of ['vda', 'vdb'])
    execFileSync(
      'sh',
      ['-c', `split -b 1M --filter='sha256sum | cut -c1-64' ${disk}.raw | cmp - ${disk}.manifest`],
      { cwd: current },
    )
  t.match(readFileSync(path.join(current, 'domain.xml'), 'utf8'), '<name>mydomain</name>')
  t.match(readFileSync(path.join(current, 'live.xml'), 'utf8'), 'id="1"')
  t.equal(readFileSync(path.join(current, 'nvram.fd'), 'utf8'), 'variables')
  const digest = execFileSync('sha256sum', ['vda.manifest'], { cwd: current, encoding: 'utf8' })
  const generation = JSON.parse(
    readFileSync(path.join(current, 'generation.json'), 'utf8'),
  ) as unknown
  t.match(generation, {
    seq: 1,
    source: { domainUuid: DOMAIN_UUID },
    disks: [{ target: 'vda', digest: digest.slice(0, 64), layers: [] }, { target: 'vdb' }],
    verified: { level: 'all' },
  })
  t.match(lastLine(source), {
    outcome: 'merged',
    seq: 1,
    plan: [{ kind: 'full', reason: 'first pull' }, {}],
  })
  // A slow hello is asked again, for the clocks, and gives each disk more streams, which ask for the session's info too.
  const asked = source.calls.slice(source.calls.lastIndexOf('hello'))
  t.strictSame(
    asked.filter((call, at) => call !== 'session.info' || asked[at - 1] !== call),
    [
      'hello',
      'describe',
      'session.open',
      'session.info',
      'session.renew',
      'session.info',
      'session.release',
      'acknowledge',
      'outcome',
    ],
  )
  await checkNothingLeft(t, source, 1)

  await pullFrom(source)
  await pullFrom(source)
  t.match(await statusCommand([cloneOf(source)]), [
    { generations: 2, newest: { seq: 3 }, freshness: { state: 'fresh' }, failures: 0 },
  ])
  const config = loadConfig(source.configFile)
  const flags = { domains: ['mydomain'], all: false, adopt: false, full: false }
  const due = await pullCommand(
    config,
    { ...flags, ifDue: true, dryRun: false },
    log,
    never,
    () => NOBODY,
  )
  t.match(due, { exit: 0, results: [{ outcome: 'not-due' }] })
  const dry = await pullCommand(
    config,
    { ...flags, ifDue: false, dryRun: true },
    log,
    never,
    () => NOBODY,
  )
  t.match(dry, {
    exit: 0,
    results: [{ outcome: 'planned', disks: [{ target: 'vda' }, { target: 'vdb' }] }],
  })
  await checkNothingLeft(t, source, 2)
})

t.test('a corrupted byte is named by verify, with its chunk', async t => {
  const source = await aSource(t)
  const { dir } = await pullFrom(source)
  const image = openSync(path.join(dir, 'vda.raw'), 'r+')
  writeSync(image, 'x', 6 * CHUNK_SIZE + 99)
  closeSync(image)
  const verified = await verifyCommand(cloneOf(source), undefined, never, NOBODY)
  t.equal(verified.sound, false)
  t.match(verified.disks, [
    { target: 'vda', bad: [{ chunk: 6, why: 'differs' }] },
    { target: 'vdb', bad: [] },
  ])
  t.match(await verifyCommand(cloneOf(source), '1', never, NOBODY), { sound: false })
  await t.rejects(verifyCommand(cloneOf(source), '7', never, NOBODY), { code: 'USAGE' })
})

t.test(
  'a generation that verify found damaged counts no more, until one finds it good',
  async t => {
    const source = await aSource(t)
    const clone = cloneOf(source)
    const layout = layoutOf(clone.dir)
    const verified = (which?: string) => verifyCommand(clone, which, never, NOBODY)
    const first = await pullFrom(source)
    const { dir } = await pullFrom(source)
    const write = (text: string) => {
      const image = openSync(path.join(dir, 'vda.raw'), 'r+')
      writeSync(image, text, 6 * CHUNK_SIZE + 99)
      closeSync(image)
    }
    write('x')
    t.match(await verified(), { sound: false })
    t.equal(await readlink(layout.current), `generations/${first.recoveryPoint}`)
    t.match(await statusCommand([clone]), [
      { newest: { seq: 1 }, generations: 1, problems: [/is damaged: vda: 1 bad chunks.* chunk 6/] },
    ])
    const { generations } = await listCommand(clone)
    t.match(generations, [{ current: true }, { current: false, damaged: /chunk 6/ }])
    t.notOk(generations[0]?.damaged)
    await pullFrom(source)
    t.strictSame((await pruneCommand(clone, true)).remove, [], 'no good one goes for a damaged one')
    t.equal((await soundGenerations(clone.dir)).length, 3)
    write('\0')
    t.match(await verified('2'), { sound: true })
    t.match(await statusCommand([clone]), [{ generations: 3, problems: [] }])
    t.match((await pruneCommand(clone, false)).remove, [{ seq: 1 }])
  },
)

t.test('an image too long, and files that are missing, are damage too', async t => {
  const source = await aSource(t)
  const clone = cloneOf(source)
  const { dir: older } = await pullFrom(source)
  const { dir } = await pullFrom(source)
  const verified = (which?: string) => verifyCommand(clone, which, never, NOBODY)
  await truncate(path.join(dir, 'vda.raw'), VDA.length + CHUNK_SIZE)
  await rm(path.join(dir, 'vdb.manifest'))
  t.match(await verified(), {
    sound: false,
    disks: [{ bad: [], image: /bytes, but generation.json says/ }, { manifest: /missing/ }],
  })
  t.match(await statusCommand([clone]), [{ newest: { seq: 1 } }])
  await rm(path.join(older, 'vda.raw'))
  t.match(await verified('1'), { sound: false, disks: [{ image: /missing/ }, {}] })
  t.match(await statusCommand([clone]), [{ freshness: { state: 'none' }, generations: 0 }])
  t.strictSame(readdirSync(clone.dir).includes('current'), false, 'nothing is there to be started')
  const flags = {
    domains: ['mydomain'],
    all: false,
    adopt: false,
    full: false,
    ifDue: true,
    dryRun: false,
  }
  t.match(await pullCommand(loadConfig(source.configFile), flags, log, never, () => NOBODY), {
    results: [{ outcome: 'published' }],
  })
})

t.test('failures before anything is published', async t => {
  const source = await aSource(t)
  await pullFrom(source)
  const { handlers } = source
  const usual = { ...handlers }

  /** One failing pull after another on the same clone; each must leave the first generation alone. */
  const fails = async (
    what: string,
    expected: { code: string; message?: RegExp },
    arrange: () => unknown,
    options?: Parameters<typeof pullFrom>[1],
    staged?: 'a donor',
  ) => {
    await t.test(what, async t => {
      await arrange()
      // Every byte is asked for, so that each fault is met.
      await t.rejects(pullFrom(source, { full: true, ...options }), expected)
      Object.assign(handlers, usual)
      t.match(lastLine(source), { outcome: 'failed', code: expected.code })
      await checkNothingLeft(t, source, 1, staged)
      await source.serveNbd()
    })
  }

  await fails(
    'a refused session keeps its reason and code',
    { code: 'SNAPSHOT_FAILED', message: /vdb has a backing file/ },
    () => {
      handlers['session.open'] = refusing('SNAPSHOT_FAILED', 'vdb has a backing file')
    },
  )
  await fails(
    'an unknown domain is the source speaking',
    { code: 'SOURCE_REFUSED', message: /no domain/ },
    () => {
      handlers.describe = refusing('SOURCE_REFUSED', 'no domain mydomain is exported')
    },
  )
  await fails(
    'a denied NBD connection gets its reason from the gate',
    { code: 'NEEDS_OPERATOR', message: /left over/ },
    async () => {
      await source.serveNbd([], 'exit 1;')
      handlers.outcome = () => ({
        state: 'reserved',
        disks: [],
        refusals: [
          {
            at: new Date().toISOString(),
            export: `mydomain/vda@${'a'.repeat(32)}`,
            code: 'NEEDS_OPERATOR',
            reason: 'an overlay is left over',
          },
        ],
      })
    },
  )
  await fails('a source that is no source', { code: 'UNSAFE', message: /failed-over/ }, () => {
    handlers.hello = () => ({
      protocol: 1,
      version: '1',
      clockMs: Date.now(),
      hostId: DOMAIN_UUID,
      role: 'failed-over',
      epoch: 0,
    })
  })
  await fails(
    'a gate that answers nonsense',
    { code: 'TRANSFER', message: /answered describe wrongly/ },
    () => {
      handlers.describe = () => ({ domain: '../x' }) as never
    },
  )
  await fails(
    'a size by the gate that NBD does not confirm',
    { code: 'TRANSFER', message: /by the gate, but .* by NBD/ },
    () => {
      handlers['session.info'] = async params => {
        const info = await usual['session.info'](params)
        return { ...info, disks: info.disks.map(disk => ({ ...disk, size: disk.size + 512 })) }
      }
    },
  )
  await fails(
    'a disk that was plugged in between describe and the freeze',
    { code: 'TRANSFER', message: /froze disk vdc/ },
    () => {
      handlers['session.info'] = async params => {
        const info = await usual['session.info'](params)
        return { ...info, disks: [...info.disks, { target: 'vdc', format: 'raw', size: 512 }] }
      }
    },
  )
  await fails(
    'a disk that is named twice',
    { code: 'TRANSFER', message: /names disk vda twice/ },
    () => {
      handlers.describe = async params => {
        const described = await usual.describe(params)
        return { ...described, disks: [...described.disks, ...described.disks.slice(0, 1)] }
      }
    },
  )
  await fails(
    'a session without a definition',
    { code: 'TRANSFER', message: /no domain XML/ },
    () => {
      handlers['session.info'] = async params => {
        return { ...(await usual['session.info'](params)), inactiveXml: '' }
      }
    },
  )
  await fails(
    'a peer that paints the terminal',
    { code: 'SOURCE_REFUSED', message: /^no {2}\[2Jdomain$/ },
    () => {
      handlers.describe = refusing('SOURCE_REFUSED', 'no \x1b[2Jdomain')
    },
  )
  await fails('an NBD server whose reads fail', { code: 'TRANSFER' }, () =>
    source.serveNbd(['--filter=error', 'error-pread-rate=100%']),
  )
  await fails(
    'an NBD server that dies in the middle',
    { code: 'TRANSFER' },
    async () => {
      await source.serveNbd(['--filter=delay', 'rdelay=300ms'])
    },
    {
      watcher: { ...NOBODY, phase: () => setTimeout(() => source.killNbd(), 100) },
    },
  )
  await fails(
    'a session that ends under the pull',
    { code: 'TRANSFER', message: /over its limit/ },
    () => source.serveNbd(['--filter=delay', 'rdelay=300ms']),
    {
      watcher: { ...NOBODY, phase: () => source.end('TRANSFER', 'over its limit') },
    },
  )
  await fails(
    'a session that was over before its release',
    { code: 'TRANSFER', message: /lease lapsed/ },
    () => {
      handlers['session.release'] = refusing('SOURCE_REFUSED', 'the lease lapsed')
    },
    {},
    'a donor',
  )
  await fails(
    'a session that became another recovery point',
    { code: 'TRANSFER', message: /changed from/ },
    () => {
      handlers['session.release'] = () => ({ recoveryPoint: '20261120T030007Z-4f2a' })
    },
    {},
    'a donor',
  )
  const aborted = new AbortController()
  await fails(
    'an interrupted pull lets the source go',
    { code: 'INTERRUPTED' },
    () => source.serveNbd(['--filter=delay', 'rdelay=300ms']),
    {
      signal: aborted.signal,
      watcher: {
        ...NOBODY,
        phase: () => aborted.abort(new Failure('INTERRUPTED', 'interrupted by SIGINT')),
      },
    },
    'a donor',
  )
  t.equal(source.calls.at(-1), 'session.release', 'so that it merges at once')
  t.match(await readState(layoutOf(cloneOf(source).dir)), {
    attempts: 17,
    failures: 16,
    lastSeq: 1,
  })
})

t.test('a gate that dies is unreachable, and its last words are the reason', async t => {
  const source = await aSource(t)
  const clone = cloneOf(source)
  const dying = [
    'sh',
    '-c',
    'echo warming up >&2; echo "Permission denied (publickey)." >&2; exit 255',
    'gate',
  ]
  const missing = ['/nonexistent/clone-server']
  for (const [gateCommand, message] of [
    [dying, /Permission denied/],
    [missing, /cannot start its gate/],
  ] as const)
    await t.rejects(
      pull(
        { ...clone, source: { ...clone.source, gateCommand: [...gateCommand] } },
        { adopt: false, full: false, signal: never, log, watcher: NOBODY },
      ),
      { code: 'SOURCE_UNREACHABLE', message },
    )
  await checkNothingLeft(t, source, 0)
})

t.test('a merge that fails is exit 13, although the generation is published and kept', async t => {
  const source = await aSource(t)
  source.handlers.outcome = () => ({
    state: 'failed',
    reason: 'vda: no space',
    remedy: 'clone-server recover mydomain',
    disks: [],
    refusals: [],
  })
  const failure = await pullFrom(source).then(
    () => undefined,
    (error: unknown) => error as Failure,
  )
  t.match(failure, {
    code: 'MERGE_FAILED',
    exit: 13,
    message: /vda: no space.* is published/,
    hint: 'clone-server recover mydomain',
  })
  t.match(lastLine(source), { outcome: 'failed', code: 'MERGE_FAILED', seq: 1 })
  await checkNothingLeft(t, source, 1)

  source.handlers.acknowledge = refusing('SOURCE_REFUSED', 'what recovery point?')
  await t.rejects(pullFrom(source), { code: 'MERGE_FAILED' }, 'outweighs the word not taken')
  source.handlers.outcome = () => ({ state: 'merged', disks: [], refusals: [] })
  await t.rejects(pullFrom(source), { code: 'SOURCE_REFUSED', message: /what.* is published/ })
  source.handlers.acknowledge = () => ({})
  source.handlers.outcome = () => ({ state: 'frozen', disks: [], refusals: [] })
  await t.rejects(pullFrom(source), { code: 'TRANSFER', message: /is frozen.* is published/ })

  source.handlers.outcome = () => ({ state: 'kept', disks: [], refusals: [] })
  t.match(await pullFrom(source), { source: 'kept', seq: 5 })
})

t.test('two pulls of one clone at once: the second is told who is at it', async t => {
  const source = await aSource(t)
  const layout = layoutOf(cloneOf(source).dir)
  await makeFolders(layout)
  const unlock = lockClone(layout, 'pull')
  await t.rejects(pullFrom(source), {
    code: 'LOCKED',
    exit: 30,
    message: `process ${process.pid} (clone pull)`,
  })
  t.strictSame(source.calls, [], 'the source was not asked')
  unlock()
})

t.test('a clone that belongs to another domain, or has another role, is not written', async t => {
  const source = await aSource(t)
  await pullFrom(source)
  source.handlers.hello = () => ({
    protocol: 1,
    version: '1',
    clockMs: Date.now(),
    hostId: DOMAIN_UUID,
    role: 'source',
    epoch: 0,
  })
  await t.rejects(pullFrom(source), { code: 'UNSAFE', exit: 31, message: /belongs to domain/ })
  await checkNothingLeft(t, source, 1)
  t.match(await pullFrom(source, { adopt: true }), { seq: 2 })
  const layout = layoutOf(cloneOf(source).dir)
  await writeState(layout, { ...(await readState(layout)), role: 'failed-over' })
  await t.rejects(pullFrom(source), { code: 'UNSAFE', message: /role failed-over/ })
})

t.test('a file system that fills up is exit 22; the last generation is untouched', async t => {
  const source = await aSource(t, { vda: randomBytes(40 * MIB) })
  const mounted = path.join(source.store, 'mydomain')
  await mkdir(mounted, { recursive: true })
  const mount = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=110m', 'tmpfs', mounted], {
    encoding: 'utf8',
  })
  t.equal(mount.status, 0, mount.stderr)
  t.teardown(() => spawnSync('umount', ['--lazy', mounted]))
  await pullFrom(source)
  await writeFile(source.file('vda'), randomBytes(40 * MIB))
  await t.rejects(pullFrom(source), {
    code: 'SPACE',
    message: /free, but a pull that changes everything needs .*vda \(copy\)/,
  })
  execFileSync('mount', ['-o', 'remount,size=260m', mounted])
  const ballast = path.join(mounted, 'ballast')
  const watcher: Watcher = {
    ...NOBODY,
    phase: () => execFileSync('sh', ['-c', `cat /dev/zero > ${ballast} 2>/dev/null || :`]),
  }
  // Its pages are there already where the copy was made; a record or a new image has none.
  const inPlace = { ...cloneOf(source), generations: 'in-place' as const }
  const attempt = (watcher: Watcher) =>
    pull(inPlace, { adopt: false, full: false, signal: never, log, watcher })
  await t.rejects(attempt(watcher), { code: 'SPACE', exit: 22, message: /no space left/ })
  execFileSync('rm', [ballast])
  const late: Watcher = {
    ...NOBODY,
    phase: name => {
      if (name === 'verify') watcher.phase(name, 0)
    },
  }
  await t.rejects(attempt(late), { code: 'SPACE', exit: 22 }, 'also where the error names no path')
  execFileSync('rm', [ballast])
  await checkNothingLeft(t, source, 1)
  t.match(await attempt(NOBODY), { seq: 2 })
})

t.test(
  'of several domains the worst decides the exit status, and one failure stops no other',
  async t => {
    const source = await aSource(t)
    const config = loadConfig(source.configFile)
    const mydomain = config.domains['mydomain']
    const alpha = config.sources['alpha']
    if (!mydomain || !alpha) throw new Error('not the fake source')
    const config2 = {
      ...config,
      sources: { alpha, dead: { ...alpha, gateCommand: ['false'] } },
      domains: { first: { ...mydomain, source: 'dead' }, mydomain },
    }
    const flags = { domains: [], all: true, ifDue: false, adopt: false, full: false, dryRun: false }
    const { results, exit } = await pullCommand(config2, flags, log, never, () => NOBODY)
    t.match(results, [
      { clone: 'first', outcome: 'failed' },
      { clone: 'mydomain', outcome: 'published' },
    ])
    t.equal(exit, 10)
  },
)

t.test('a long merge is waited for, told to who looks on, and interruptible', async t => {
  const source = await aSource(t)
  source.handlers.outcome = () => ({ state: 'merging', disks: [], refusals: [] })
  const aborted = new AbortController()
  const notes: string[] = []
  const watcher: Watcher = {
    ...NOBODY,
    note(text) {
      notes.push(text)
      aborted.abort(new Failure('INTERRUPTED', 'interrupted by SIGINT'))
    },
  }
  await t.rejects(pullFrom(source, { watcher, signal: aborted.signal }), {
    code: 'INTERRUPTED',
    exit: 130,
    message: /is published/,
  })
  t.match(notes, [/waiting for the source to merge/])
  await checkNothingLeft(t, source, 1)
})

t.test('twelve disks make no warning', async t => {
  const source = await aSource(
    t,
    Object.fromEntries(Array.from({ length: 12 }, (_, at) => [`vd${(at + 10).toString(36)}`, VDB])),
  )
  const warnings: Error[] = []
  const onWarning = (warning: Error) => warnings.push(warning)
  process.on('warning', onWarning)
  t.teardown(() => process.off('warning', onWarning))
  t.equal((await pullFrom(source)).plan.length, 12)
  t.strictSame(warnings, [])
})

t.test('interrupted between two domains is exit 130', async t => {
  const source = await aSource(t)
  const config = loadConfig(source.configFile)
  const mydomain = config.domains['mydomain']
  if (!mydomain) throw new Error('not the fake source')
  const two = { ...config, domains: { mydomain, second: { ...mydomain, domain: 'mydomain' } } }
  const aborted = new AbortController()
  const flags = { domains: [], all: true, ifDue: true, adopt: false, full: false, dryRun: false }
  // Too late to stop the first one: it is done when its source is.
  const watcher: Watcher = {
    ...NOBODY,
    done: () => setImmediate(() => aborted.abort(new Failure('INTERRUPTED', 'by SIGINT'))),
  }
  source.handlers.outcome = () => ({ state: 'kept', disks: [], refusals: [] })
  const { results, exit } = await pullCommand(two, flags, log, aborted.signal, () => watcher)
  t.equal(exit, 130)
  t.match(results.at(-1), { clone: 'second', failure: { code: 'INTERRUPTED' } })
})
