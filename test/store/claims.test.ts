// Claims: durable, by purpose, any file counts; those of processes that are gone are stale. What reads generations shows them.

import t, { type Test } from 'tap'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync, writeFileSync } from 'node:fs'
import { mkdir, readdir, rename, rm, symlink, truncate, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { pino } from 'pino'
import { NOBODY } from '../../client/attempt.ts'
import { Cleanup } from '../../shared/cleanup.ts'
import { processStart } from '../../shared/host/process.ts'
import { claimCommand, releaseCommand } from '../../client/commands/claim.ts'
import { listCommand } from '../../client/commands/list.ts'
import { pruneCommand } from '../../client/commands/prune.ts'
import { pullCommand } from '../../client/commands/pull.ts'
import { statusCommand } from '../../client/commands/status.ts'
import { verifyHistoryCommand } from '../../client/commands/verify-history.ts'
import { verifyManifestsCommand } from '../../client/commands/verify-manifests.ts'
import { cloneConfig, loadConfig, type CloneConfig } from '../../client/config/effective.ts'
import { pull } from '../../client/pull.ts'
import { withLost } from '../../client/source/lost.ts'
import { listText, statusText, verifyManifestsText } from '../../client/render-generations.ts'
import { pullText } from '../../client/render.ts'
import { claimsOf, claimReason, removeStaleClaims, withClaim } from '../../client/store/claims.ts'
import { soundGenerations, type Sound } from '../../client/store/generation.ts'
import { lockClone } from '../../client/store/guard.ts'
import { appendHistory, checkHistory, type HistoryLine } from '../../client/store/history.ts'
import { layoutOf } from '../../client/store/layout.ts'
import { readState, writeState } from '../../client/store/state.ts'
import { recordVerified } from '../../client/store/verified.ts'
import { idOf, makeClone, publishOne } from '../client/fake-clone.ts'
import { fakeSource, TOKEN } from '../client/fake-source.ts'

/** A clone of four generations, which keeps two. */
async function four(t: Test): Promise<{ clone: CloneConfig; first: Sound }> {
  const made = await makeClone(t)
  const clone = { ...made, keep: { ...made.keep, last: 2 } }
  for (const seq of [1, 2, 3, 4]) await publishOne(clone.dir, seq)
  const [first] = await soundGenerations(clone.dir)
  if (!first) throw new Error('nothing published')
  return { clone, first }
}
const seqs = async (clone: CloneConfig): Promise<number[]> =>
  (await soundGenerations(clone.dir)).map(({ generation }) => generation.seq)

t.test('a claimed generation outlives prune until its last claim is released', async t => {
  const { clone, first } = await four(t)
  const { dir, ...claimed } = await claimCommand(clone, '1', 'test-boot')
  t.strictSame(claimed, { clone: 'mydomain', id: idOf(1), seq: 1, purpose: 'test-boot' })
  t.equal(dir, first.dir)
  await claimCommand(clone, idOf(1), 'export')
  t.equal(await claimReason(first.dir), 'claimed: export, test-boot')
  t.match(await pruneCommand(clone, false), {
    remove: [{ seq: 2 }],
    spared: [{ seq: 1, why: 'claimed: export, test-boot' }],
  })
  await releaseCommand(clone, '1', 'export')
  t.match((await pruneCommand(clone, false)).spared, [{ why: 'claimed: test-boot' }])
  await releaseCommand(clone, '1', 'test-boot')
  t.strictSame(await claimsOf(first.dir), [])
  t.match((await pruneCommand(clone, false)).remove, [{ seq: 1 }])
  t.strictSame(await seqs(clone), [3, 4])
})

t.test('mistakes with claims are refused, each with its reason', async t => {
  const { clone } = await four(t)
  await claimCommand(clone, '1', 'test-boot')
  await t.rejects(claimCommand(clone, '1', 'test-boot'), {
    code: 'UNSAFE',
    message: `generation ${idOf(1)} is claimed for test-boot already`,
  })
  await t.rejects(claimCommand(clone, '9', 'x'), {
    code: 'USAGE',
    message: 'mydomain has no generation 9',
  })
  await t.rejects(releaseCommand(clone, '2', 'test-boot'), {
    code: 'USAGE',
    message: `generation ${idOf(2)} is not claimed for test-boot`,
  })
  for (const purpose of ['../../current', '', 'a b', '.hidden', 'x'.repeat(101)])
    for (const command of [claimCommand, releaseCommand])
      await t.rejects(
        command(clone, '1', purpose),
        { code: 'USAGE', message: /a name is/ },
        purpose,
      )
  const unlock = lockClone(layoutOf(clone.dir), 'pull')
  await t.rejects(claimCommand(clone, '2', 'x'), { code: 'LOCKED' })
  await t.rejects(releaseCommand(clone, '1', 'test-boot'), { code: 'LOCKED' })
  unlock()
})

t.test('any file is a claim, whatever is in it, and so is what cannot be looked at', async t => {
  const { clone, first } = await four(t)
  const folder = path.join(first.dir, 'claims')
  await mkdir(folder)
  t.equal(await claimReason(first.dir), undefined, 'an empty folder claims nothing')
  await writeFile(path.join(folder, 'touched'), '')
  await writeFile(path.join(folder, 'torn'), '{"schema":1,"purp')
  await writeFile(path.join(folder, 'other'), '{"schema":2,"pid":1}')
  await writeFile(path.join(folder, 'two words'), 'yes')
  await mkdir(path.join(folder, 'a-folder'))
  t.equal(await claimReason(first.dir), 'claimed: a-folder, other, torn, touched, two words')
  await removeStaleClaims([first])
  t.equal((await claimsOf(first.dir)).length, 5)
  await releaseCommand(clone, '1', 'touched')
  await releaseCommand(clone, '1', 'torn')
  t.equal((await claimsOf(first.dir)).length, 3)

  const second = (await soundGenerations(clone.dir))[1]?.dir ?? ''
  await writeFile(path.join(second, 'claims'), 'a file where the folder should be')
  t.match(await claimReason(second), /^claimed: .*claims cannot be read: ENOTDIR$/)
})

t.test(
  'a claim for the life of a process goes with the cleanup, and is seen through when killed',
  async t => {
    const { clone, first } = await four(t)
    {
      await using cleanup = new Cleanup()
      await withClaim(first, 'export', cleanup)
      t.match(await claimsOf(first.dir), [
        { name: `export-${process.pid}`, text: `export (process ${process.pid})`, stale: false },
      ])
      t.match((await pruneCommand(clone, false)).spared, [
        { seq: 1, why: /claimed: export \(process/ },
      ])
      await t.rejects(releaseCommand(clone, '1', `export-${process.pid}`), { code: 'UNSAFE' })
    }
    t.strictSame(await readdir(path.join(first.dir, 'claims')), [])

    const holder = spawn('sleep', ['100'])
    const { pid = 0 } = holder
    const start = await processStart(pid)
    const file = path.join(first.dir, 'claims', `export-${pid}`)
    const at = new Date().toISOString()
    await writeFile(file, JSON.stringify({ schema: 1, purpose: 'export', at, pid, start }))
    t.match(await claimsOf(first.dir), [{ stale: false }])
    holder.kill('SIGKILL')
    await once(holder, 'exit')
    t.match(await claimsOf(first.dir), [{ stale: true }])
    t.equal(await claimReason(first.dir), undefined)
    await claimCommand(clone, '1', 'next')
    t.strictSame(
      await readdir(path.join(first.dir, 'claims')),
      ['next'],
      'the next command removes it',
    )

    const ours = { schema: 1, purpose: 'export', at, pid: process.pid, start: '1' }
    await writeFile(file, JSON.stringify(ours))
    t.match(await claimReason(first.dir), 'claimed: next', 'our process id, but of another process')
  },
)

t.test('a process that claims again after one of the same id died takes its place', async t => {
  const { first } = await four(t)
  const folder = path.join(first.dir, 'claims')
  await mkdir(folder)
  await writeFile(path.join(folder, `export-${process.pid}`), '{}')
  await using cleanup = new Cleanup()
  await withClaim(first, 'export', cleanup)
  t.match(await claimsOf(first.dir), [{ pid: process.pid, stale: false }])
})

const never = new AbortController().signal

t.test('a disk that the domain has no more is told once, and written down', async t => {
  const source = await fakeSource({ vda: Buffer.alloc(4096, 1), vdb: Buffer.alloc(4096, 2) })
  t.teardown(() => source[Symbol.asyncDispose]())
  const clone = cloneConfig(loadConfig(source.configFile), 'mydomain')
  const warned: object[] = []
  const log = pino(
    { level: 'warn' },
    { write: (line: string) => warned.push(JSON.parse(line) as object) },
  )
  const pullIt = (one: CloneConfig) =>
    pull(one, { adopt: false, full: false, signal: never, log, watcher: NOBODY })
  const first = await pullIt(clone)
  t.strictSame(warned, [])

  const { describe: describe, 'session.info': info } = source.handlers
  const without = <D extends { disks: { target: string }[] }>(one: D): D => ({
    ...one,
    disks: one.disks.filter(({ target }) => target !== 'vdb'),
  })
  const domain = { domain: 'mydomain' }
  source.handlers.describe = async () => without(await describe(domain))
  source.handlers['session.info'] = async () => without(await info({ token: TOKEN }))
  const reason = `the domain has no disk vdb any more; generation ${first.recoveryPoint} has it`
  const dry = await pullCommand(
    loadConfig(source.configFile),
    { domains: ['mydomain'], all: false, ifDue: false, adopt: false, full: false, dryRun: true },
    log,
    never,
    () => NOBODY,
  )
  const [planned] = dry.results
  t.match(planned && pullText(planned), `\nmydomain: would not pull vdb: ${reason}`)
  const second = await pullIt(clone)
  const told = { target: 'vdb', reason }
  t.match(warned, [{ ...told, domain: 'mydomain', msg: 'disk is not pulled' }])
  t.equal(warned.length, 1)
  t.match(second.omitted, [{ target: 'sda' }, { ...told, lost: true }])
  const newest = (await soundGenerations(clone.dir)).at(-1)?.generation
  t.match(newest?.omitted, [{ target: 'sda' }, told])
  const line = readFileSync(layoutOf(clone.dir).history, 'utf8').trim().split('\n').at(-1) ?? ''
  t.match(JSON.parse(line), { omitted: [{ target: 'sda' }, told] })
})

t.test('a disk is lost when the newest generation has it and nobody excluded it here', t => {
  const newest = { id: 'g1', generation: { disks: [{ target: 'vda' }, { target: 'vdb' }] } }
  const vda = { target: 'vda' }
  const off = { target: 'vdb', reason: 'not exported' }
  const gone = {
    target: 'vdb',
    reason: 'the domain has no disk vdb any more; generation g1 has it',
  }
  const none = new Set<string>()
  const vdb = new Set(['vdb'])
  t.strictSame(withLost([vda], [off], none, undefined), [off], 'the first pull')
  t.strictSame(withLost([vda, { target: 'vdb' }], [], none, newest), [])
  t.strictSame(withLost([vda], [], none, newest), [{ ...gone, lost: true }])
  t.strictSame(withLost([vda], [], vdb, newest), [gone])
  const { reason } = { reason: 'not exported; generation g1 has it' }
  t.strictSame(withLost([vda], [off], none, newest), [{ ...off, reason, lost: true }])
  t.strictSame(withLost([vda], [off], vdb, newest), [{ ...off, reason }])
  t.end()
})

const LINE = {
  schema: 1,
  began: '',
  ended: '',
  outcome: 'failed',
  bytes: { read: 0, written: 0 },
  seconds: {},
} as const

async function aHistory(t: Test, lines: readonly Partial<HistoryLine>[]) {
  const clone = await makeClone(t)
  const layout = layoutOf(clone.dir)
  for (const line of lines) await appendHistory(layout, { ...LINE, ...line })
  const check = async (attempts?: number) => {
    const { problems, torn } = await checkHistory(layout, attempts)
    return { problems: problems.map(({ line, why }) => `${line}: ${why}`), torn }
  }
  return { clone, layout, check }
}

t.test('history is a chain: an edited or removed line shows, wherever it is', async t => {
  const published = [1, 2, 3, 4].map(seq => ({ seq, recoveryPoint: idOf(seq) }))
  const { layout, check } = await aHistory(t, published)
  t.strictSame(await check(4), { problems: [], torn: [] })
  const text = readFileSync(layout.history, 'utf8')
  const lines = text.split('\n')
  const TABLE: [what: string, content: string, problems: string[]][] = [
    ['an edited one', text.replace('failed', 'merged'), ['2: does not continue the chain']],
    [
      'the first is gone',
      lines.slice(1).join('\n'),
      [
        '1: does not continue the chain',
        '4: missing: state.json counts 4 attempts, and there are 3 lines',
      ],
    ],
    [
      'one in the middle is gone',
      lines.toSpliced(1, 1).join('\n'),
      [
        '2: does not continue the chain',
        '4: missing: state.json counts 4 attempts, and there are 3 lines',
      ],
    ],
    [
      'the last are gone, which no chain can tell',
      `${lines.slice(0, 2).join('\n')}\n`,
      ['3: missing: state.json counts 4 attempts, and there are 2 lines'],
    ],
    ['all of it is gone', '', ['1: missing: state.json counts 4 attempts, and there are 0 lines']],
    [
      'one is overwritten',
      text.replace(lines[1] ?? '?', 'x'),
      ['2: not a line of history', '3: does not continue the chain'],
    ],
    ['the last is overwritten', text.replace(lines[3] ?? '?', 'x'), ['4: not a line of history']],
  ]
  for (const [what, content, problems] of TABLE) {
    writeFileSync(layout.history, content)
    t.strictSame(await check(4), { problems, torn: [] }, what)
  }
  await rm(layout.history)
  t.strictSame(await check(0), { problems: [], torn: [] }, 'a clone that was never pulled')
})

t.test('a line that a power cut tore is told, and is no tampering', async t => {
  const { layout, check } = await aHistory(t, [{}, {}, {}, {}])
  const text = readFileSync(layout.history)
  for (const torn of [
    text.subarray(0, -20),
    Buffer.concat([text.subarray(0, -20), Buffer.from([0xe2, 0x82])]),
  ]) {
    writeFileSync(layout.history, torn)
    t.strictSame(await check(3), { problems: [], torn: [4] })
    await appendHistory(layout, LINE)
    t.strictSame(await check(4), { problems: [], torn: [4] }, 'the next one chains over it')
  }
})

t.test('sequence numbers only grow, and no recovery point is published twice', async t => {
  const { check } = await aHistory(t, [
    { seq: 1, recoveryPoint: idOf(1) },
    { recoveryPoint: idOf(2) },
    { seq: 3, recoveryPoint: idOf(2) },
    { seq: 3, recoveryPoint: idOf(4) },
    { seq: 2, recoveryPoint: idOf(1) },
    { seq: 4, recoveryPoint: idOf(5) },
  ])
  t.strictSame((await check()).problems, [
    '4: published seq 3 after 3',
    '5: published seq 2 after 3',
    `5: published ${idOf(1)} again, after line 1`,
  ])
})

t.test('lines of the first version are read, and new ones say how a pull went', async t => {
  const { clone, layout } = await aHistory(t, [])
  // As version 0.1.0 wrote it.
  const old = `{"previous":null,"schema":1,"began":"2026-11-20T11:50:22.000Z","ended":"2026-11-20T11:50:25.000Z","outcome":"merged","bytes":{"read":1,"written":1},"seconds":{"copy":1},"session":"s","recoveryPoint":"${idOf(1)}","seq":1,"plan":[{"target":"vda","kind":"full","reason":"first pull","size":1}]}\n`
  writeFileSync(layout.history, old)
  await appendHistory(layout, {
    ...LINE,
    seq: 2,
    recoveryPoint: idOf(2),
    bytes: { read: 1, written: 1, changed: 1, hashed: 9, reused: 0 },
    method: 'reflink',
    verify: 'source',
    reconnects: 2,
    plan: [{ target: 'vda', kind: 'hash', reason: 'compared', size: 9, basis: idOf(1) }],
  })
  t.match(await verifyHistoryCommand(clone), { lines: 2, published: 2, problems: [], torn: [] })
})

t.test('manifests alone: each bad file is named, and no image is opened', async t => {
  const clone = await makeClone(t)
  const dirs: string[] = []
  for (const seq of [1, 2, 3, 4])
    dirs.push(await publishOne(clone.dir, seq, 3_000_000, ['vda', 'vdb']))
  const [one = '', two = '', three = '', four = ''] = dirs
  for (const dir of dirs) await rm(path.join(dir, 'vda.raw'))
  const good = await verifyManifestsCommand(clone, undefined)
  t.match(good.generations, [
    { manifests: 2, bad: [] },
    { bad: [] },
    { bad: [] },
    { seq: 4, bad: [] },
  ])
  t.equal(
    verifyManifestsText(good),
    'mydomain: 4 of 4 generations: 8 manifests match; no image was read',
  )

  const file = path.join(one, 'vda.manifest')
  const text = readFileSync(file, 'utf8')
  writeFileSync(
    file,
    text.replace(/^./, digit => (digit === '0' ? '1' : '0')),
  )
  await truncate(path.join(two, 'vdb.manifest'), 64)
  await rm(path.join(two, 'vda.manifest'))
  writeFileSync(path.join(three, 'generation.json'), '{')
  await rm(path.join(four, 'vdb.manifest'))
  await mkdir(path.join(four, 'vdb.manifest'))
  const { generations } = await verifyManifestsCommand(clone, undefined)
  t.strictSame(generations.map(({ bad }) => bad.map(text => text.replace(clone.dir, ''))).flat(), [
    `/generations/${idOf(1)}/vda.manifest: not the manifest that generation.json names`,
    `/generations/${idOf(2)}/vda.manifest: missing`,
    `/generations/${idOf(2)}/vdb.manifest: 64 bytes, but 3 chunks need 195`,
    `/generations/${idOf(4)}/vdb.manifest: 4096 bytes, but 3 chunks need 195`,
    generations.at(-1)?.bad[0]?.replace(clone.dir, ''),
  ])
  t.match(generations.at(-1)?.bad[0], /generation\.json: .*JSON/)
  t.equal((await verifyManifestsCommand(clone, '1')).generations[0]?.bad.length, 1)
  await t.rejects(verifyManifestsCommand(clone, '7'), { code: 'USAGE' })
  await t.rejects(verifyManifestsCommand(clone, idOf(3)), { code: 'INTEGRITY' })
})

t.test(
  'list and status tell what there is, what is claimed, pinned, staged and cut short',
  async t => {
    const { clone, first } = await four(t)
    const [, second, , last] = await soundGenerations(clone.dir)
    if (!second || !last) throw new Error('nothing published')
    const layout = layoutOf(clone.dir)
    await writeState(layout, { ...(await readState(layout)), selected: 2 })
    await claimCommand(clone, '1', 'test-boot')
    const gone = {
      schema: 1,
      purpose: 'export',
      at: new Date().toISOString(),
      pid: 999_999,
      start: '1',
    }
    await writeFile(path.join(first.dir, 'claims', 'export-999999'), JSON.stringify(gone))
    await rename(path.join(first.dir, 'vda.raw'), path.join(first.dir, `vda.raw.from-${idOf(2)}`))
    await rm(path.join(last.dir, 'vda.raw'))
    await symlink('/dev/null', path.join(last.dir, 'vda.raw'))
    const day = new Date(Date.now() - 86_400_000)
    await recordVerified(second.dir, day)
    await writeFile(path.join(last.dir, 'verified.json'), '{')

    const { generations } = await listCommand(clone)
    t.match(generations, [
      { current: false, claims: [{ name: 'test-boot' }], disks: [{ form: 'record', bytes: 4096 }] },
      {
        current: true,
        claims: [],
        disks: [{ form: 'whole' }],
        verified: { fullAt: day.toISOString() },
      },
      { kept: 'last 2 of 2' },
      { kept: 'last 1 of 2', disks: [{ form: 'device', bytes: 0 }] },
    ])
    t.equal(generations[0]?.kept, undefined)
    t.equal(generations[0]?.claims.length, 1, 'the claim of a process that is gone was removed')
    const text = listText(generations, [{ line: 3, why: 'edited' }]).split('\n')
    t.match(text[1], /4 KiB +4 KiB +record +all .* ago +claimed: test-boot$/)
    t.match(text[2], / whole +all 24h 0m ago +current$/)
    t.match(text[4], / 4 KiB +0 B +device /)
    t.equal(text[5], 'history.jsonl: line 3: edited')

    const status = async () => (await statusCommand([clone]))[0]
    t.match(await status(), {
      generations: 4,
      current: { id: idOf(2), seq: 2, pinned: true },
      lastFullVerify: { at: day.toISOString() },
      problems: [],
    })
    t.notOk((await status())?.staging)
    await mkdir(path.join(layout.staging, idOf(5)))
    await writeFile(path.join(layout.staging, idOf(5), 'vda.raw'), Buffer.alloc(8192, 1))
    await writeFile(path.join(clone.dir, 'undo.json'), '{}')
    const told = await status()
    t.match(told, { staging: { recoveryPoints: [idOf(5)], bytes: 8192 }, problems: [/cut short/] })
    const notes = statusText(told ? [told] : []).split('\n')
    t.match(notes[1], / 4 +24h 0m ago +-$/)
    t.match(notes.slice(2), [
      `mydomain: current stays at ${idOf(2)} (seq 2)`,
      `mydomain: staging holds 8 KiB of ${idOf(5)}`,
      'mydomain: a pull or rollback was cut short',
    ])
  },
)
