// Rollback: an older generation becomes current, and the newer ones are kept. Where generations are whole that is a link;
// in place it is an exchange for each generation on the way.

import { Failure } from '../../shared/failures.ts'
import { openPool } from '../copy/pool.ts'
import { offsetOf, allRuns, workOff } from '../copy/runs.ts'
import { CHUNK_SIZE, chunkCount } from '../plan.ts'
import { claimReason } from './claims.ts'
import { repairCurrent } from './current.ts'
import { checkUnclaimed, exchange, type Working } from './exchange.ts'
import { noteDamage } from './exchange-steps.ts'
import { openExchange } from './exchange-files.ts'
import { soundGenerations, type Sound } from './generation.ts'
import type { Layout } from './layout.ts'
import { writeState, type State } from './state.ts'
import type { ExchangedDisk } from './undo.ts'
import { chainOf, isWhole, viewOf } from './view.ts'

/** One exchange of a rollback. */
export interface RollbackStep {
  readonly to: Sound
  readonly disks: readonly ExchangedDisk[]
  /** At most so many bytes are saved and as many are written. */
  readonly bytes: number
}
export interface RollbackPlan {
  readonly target: Sound
  /** What the state says afterwards. */
  readonly selected: State['selected']
  /** Empty where the generation is whole. */
  readonly steps: readonly RollbackStep[]
}

/**
 * A pull in place patches the images of the newest generation, so these must be current, and nobody may have claimed them.
 * @param clone its name. @throws Failure UNSAFE
 */
export async function checkPatchable(
  clone: string,
  { selected }: Pick<State, 'selected'>,
  sound: readonly Sound[],
): Promise<void> {
  if (selected !== 'newest')
    throw new Failure(
      'UNSAFE',
      `${clone} is rolled back to the generation of seq ${selected}, whose images a pull would change`,
      { remedy: `go forward again first: clone rollback ${clone} newest` },
    )
  const newest = sound.at(-1)
  const claimed = newest && (await claimReason(newest.dir))
  if (newest && claimed !== undefined)
    throw new Failure(
      'UNSAFE',
      `a pull would change the images of generation ${newest.id}; ${claimed}`,
      { remedy: `when that use is over: clone release ${clone} ${newest.id} PURPOSE` },
    )
}

/**
 * What it takes to make a generation current; nothing is changed. Only under the clone's lock.
 * @throws Failure INTEGRITY when it is damaged or cannot be read; UNSAFE when images that would be changed are claimed
 */
export async function planRollback(
  layout: Layout,
  target: Sound,
  selected: State['selected'],
): Promise<RollbackPlan> {
  if (target.damaged !== undefined)
    throw new Failure('INTEGRITY', `generation ${target.id} is damaged: ${target.damaged}`, {
      remedy: 'choose another one: clone list DOMAIN',
    })
  const sound = await soundGenerations(layout.dir)
  const steps: RollbackStep[] = []
  for (const { to, disks } of await exchangesTo(sound, target)) {
    // Those on the way are records, whose images nobody can be using.
    await checkUnclaimed(sound, await wholeNow(sound, disks))
    let chunks = 0
    for (const disk of disks) {
      await using files = await openExchange(layout, to.id, disk)
      for (const { count } of files.differing(chunkCount(disk.after.size))) chunks += count
    }
    steps.push({ to, disks, bytes: chunks * CHUNK_SIZE })
  }
  return { target, selected, steps }
}

async function wholeNow(
  sound: readonly Sound[],
  disks: readonly ExchangedDisk[],
): Promise<ExchangedDisk[]> {
  const whole: ExchangedDisk[] = []
  for (const exchanged of disks) {
    const holder = sound.find(({ id }) => id === exchanged.from)
    const disk = holder?.generation.disks.find(({ target }) => target === exchanged.target)
    if (holder && disk && (await isWhole(holder, disk))) whole.push(exchanged)
  }
  return whole
}

/** The exchanges that make all images those of `target`, in their order. */
async function exchangesTo(
  sound: readonly Sound[],
  target: Sound,
): Promise<{ to: Sound; disks: ExchangedDisk[] }[]> {
  const ways: { to: Sound; disk: ExchangedDisk }[][] = []
  for (const { target: name } of target.generation.disks) {
    const chain = await chainOf(sound, target, name)
    const way = chain.slice(0, -1).map((link, at) => {
      const holder = chain[at + 1] ?? link
      const [before, after] = [holder.disk, link.disk].map(({ format, size }) => ({ format, size }))
      if (!before || !after) throw new Failure('INTERNAL', `a chain of ${name} without an end`)
      return { to: link.found, disk: { target: name, from: holder.found.id, before, after } }
    })
    ways.push(way.reverse())
  }
  const steps: { to: Sound; disks: ExchangedDisk[] }[] = []
  for (;;) {
    // Disks of one generation go together; usually they all go the same way.
    const to = ways.find(way => way.length > 0)?.[0]?.to
    if (!to) return steps
    const disks = ways.flatMap(way => (way[0]?.to === to ? [way.shift()] : []))
    steps.push({ to, disks: disks.flatMap(one => (one ? [one.disk] : [])) })
  }
}

/**
 * Makes a generation current, durably. Each exchange on the way is complete in itself: after an error, or a power cut, some
 * generation between the two is current, and the same command goes on from there.
 * @throws Failure INTEGRITY, SPACE, STANDBY_IO, UNSAFE; the signal's reason
 */
export async function rollback(
  layout: Layout,
  state: State,
  { target, selected, steps }: RollbackPlan,
  working: Working,
): Promise<void> {
  const last = steps.at(-1)
  if (last) await checkTarget(layout, target, steps, working)
  for (const step of steps) {
    const after = { ...state, selected: step === last ? selected : step.to.generation.seq }
    await exchange(layout, step.to, step.disks, after, working)
  }
  if (last) return
  const next = { ...state, selected }
  await writeState(layout, next)
  await repairCurrent(layout, next, await soundGenerations(layout.dir))
}

/** When something on the way is damaged, all of the target is read first: it may share the bad chunks. */
async function checkTarget(
  layout: Layout,
  target: Sound,
  steps: readonly RollbackStep[],
  { signal, watcher }: Working,
): Promise<void> {
  const sound = await soundGenerations(layout.dir)
  const passed = new Set(steps.flatMap(({ disks }) => disks.map(({ from }) => from)))
  if (!sound.some(({ id, damaged }) => passed.has(id) && damaged !== undefined)) return
  const total = target.generation.disks.reduce((sum, { size }) => sum + size, 0)
  watcher.phase('verify', total)
  for (const disk of target.generation.disks) {
    await using view = await viewOf(sound, target, disk)
    await using pool = openPool(chunkCount(disk.size))
    const where = { pool, signal, onProgress: (bytes: number) => watcher.progress(bytes) }
    const runs = (function* () {
      for (const { chunk, count } of allRuns(chunkCount(disk.size))) yield* view.runs(chunk, count)
    })()
    const job = { kind: 'check', size: disk.size, manifest: view.manifest } as const
    const [file = ''] = view.files
    const bad = await workOff(runs, ({ fd, direct }) => ({ ...job, fd, direct }), file, where)
    if (!bad[0]) continue
    await noteDamage(target.dir, disk.target, bad)
    throw new Failure(
      'INTEGRITY',
      `generation ${target.id} is damaged: ${disk.target}: ${bad.length} bad chunks, the first is ${offsetOf(bad[0])}`,
      { remedy: 'choose another one: clone list DOMAIN' },
    )
  }
}
