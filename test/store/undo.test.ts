// An exchange that is cut short, by whatever, leaves a complete generation once a command has run; and goes on from there.

import t from 'tap'
import { ROOT } from '../lab/names.ts'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { readdir, readFile } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { NOBODY, type Watcher } from '../../client/attempt.ts'
import { openPool } from '../../client/copy/pool.ts'
import { CHUNK_SIZE } from '../../client/plan.ts'
import { publishInPlace } from '../../client/store/exchange.ts'
import { repairCurrent } from '../../client/store/current.ts'
import { soundGenerations } from '../../client/store/generation.ts'
import { layoutOf, makeFolders, type Layout } from '../../client/store/layout.ts'
import { readState } from '../../client/store/state.ts'
import { recover } from '../../client/store/undo.ts'
import {
  aDisk,
  bytesOf,
  changed,
  currentOf,
  depthOf,
  idOf,
  publishAll,
  publishStaged,
  stage,
  type Contents,
} from '../client/generations.ts'
import { aMedium } from '../client/medium.ts'

const medium = await aMedium(t, 'ext4', 256)
const pool = openPool(1)
t.teardown(() => pool[Symbol.asyncDispose]())
let clones = 0

async function aClone(): Promise<Layout> {
  const layout = layoutOf(path.join(medium, `clone-${clones++}`))
  await makeFolders(layout)
  return layout
}

const vda = aDisk(20)
const vdb = aDisk(3, 512)
const ALL: Contents[] = [
  { vda: { bytes: vda }, vdb: { bytes: vdb } },
  {
    vda: { bytes: Buffer.concat([changed(vda, 0, 3, { zero: 9 }, 17, 18, 19), aDisk(2, 100)]) },
    vdb: { bytes: changed(vdb, 1).subarray(0, 2 * CHUNK_SIZE) },
  },
]

/** What is not as it must be; `current` must be a generation that is whole. */
async function wrong(layout: Layout): Promise<string[]> {
  const found: string[] = []
  const current = await currentOf(layout)
  if (current === undefined) found.push('no current')
  for (const { generation, damaged } of await soundGenerations(layout.dir)) {
    const { seq } = generation
    if (damaged !== undefined) found.push(`${seq} is damaged`)
    for (const { target } of generation.disks) {
      const want = ALL[seq - 1]?.[target]?.bytes
      if (!want?.equals(await bytesOf(layout, seq, target))) found.push(`${seq} ${target}`)
      if (seq === current && (await depthOf(layout, seq, target)) !== 1) found.push('not whole')
    }
  }
  if (existsSync(path.join(layout.dir, 'undo.json'))) found.push('undo.json')
  return found
}

/** Aborts once so many bytes of a phase are done. */
function abortingIn(name: string, after: number): { watcher: Watcher; signal: AbortSignal } {
  const controller = new AbortController()
  let left = Infinity
  const watcher: Watcher = {
    ...NOBODY,
    phase: phase => (left = phase === name ? after : Infinity),
    progress: bytes => {
      left -= bytes
      if (left <= 0) controller.abort(new Error('stopped by the test'))
    },
  }
  return { watcher, signal: controller.signal }
}

t.test('an abort goes back at once, wherever it comes; the next attempt succeeds', async t => {
  const layout = await aClone()
  const [one = {}, two = {}] = ALL
  await publishAll(layout, [one], pool)
  await stage(layout, 2, two, [{ id: idOf(1), contents: one }])
  for (const [phase, after] of [
    ['save', 8 * CHUNK_SIZE],
    ['patch', 8 * CHUNK_SIZE],
    ['patch', 12 * CHUNK_SIZE],
  ] as const) {
    const state = await readState(layout)
    const publishing = publishInPlace(layout, idOf(2), state, { pool, ...abortingIn(phase, after) })
    await t.rejects(publishing, { message: 'stopped by the test' }, `${phase} ${after}`)
    t.equal(await currentOf(layout), 1)
    t.strictSame(await wrong(layout), [])
    t.notOk((await readdir(path.join(layout.generations, idOf(1)))).some(name => /from/.test(name)))
  }
  await publishStaged(layout, 2, pool)
  t.equal(await currentOf(layout), 2)
  t.strictSame(await wrong(layout), [])
})

const SEED = Number(process.env['SEED'] ?? Math.floor(Math.random() * 1e6))
/** A number in [0, 1) for each round (mulberry32's mixing). */
const random = (round: number): number => {
  let mixed = Math.imul((SEED + round * 0x6d2b79f5) ^ (SEED >>> 15), 1 | SEED)
  mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
  return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
}

t.test(`a process killed in an exchange leaves what recovers: SEED=${SEED}`, async t => {
  const layout = await aClone()
  await publishAll(layout, ALL, pool)
  const program = path.join(ROOT, 'dist', 'test', 'client', 'exchange-process.js')
  const seen = new Set<string>()
  for (const [round, step] of ['saving', 'patching', 'patching', 'patched'].entries()) {
    const child = spawn(process.execPath, [program, layout.dir], {
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    let complaint = ''
    child.stderr.on('data', (data: Buffer) => (complaint += data.toString()))
    const ended = once(child, 'exit')
    const file = path.join(layout.dir, 'undo.json')
    // Each step is fsynced before anything of it is done.
    for (let now = ''; !now.includes(`"${step}"`) && child.exitCode === null;) {
      await sleep(1)
      now = await readFile(file, 'utf8').catch(() => '')
    }
    await sleep(random(round) * 30)
    t.equal(child.exitCode, null, complaint)
    child.kill('SIGKILL')
    await ended
    const text = await readFile(file, 'utf8').catch(() => '{}')
    seen.add((JSON.parse(text) as { step?: string }).step ?? 'none')
    if (text !== '{}') t.equal(await currentOf(layout), undefined, 'no current while it is open')
    await recover(layout)
    t.equal(await recover(layout), undefined, 'a second time there is nothing to do')
    await repairCurrent(layout, await readState(layout), await soundGenerations(layout.dir))
    t.strictSame(await wrong(layout), [])
  }
  t.comment(`killed in: ${[...seen].join(', ')}`)
})
