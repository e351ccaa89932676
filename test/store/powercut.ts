// A store that lives through a sequence of commands while every write of its disk is recorded; then the power goes at any of
// these writes, and one command must be enough to have a good clone again.

import path from 'node:path'
import { execa } from 'execa'
import { randomBytes } from 'node:crypto'
import { statusCommand } from '../../client/commands/status.ts'
import { cloneConfig, loadConfig } from '../../client/config/effective.ts'
import type { FileSystem } from '../client/medium.ts'
import type { Dice } from '../faults/scenario.ts'
import { altered, type ChangingSource, type Disks } from './changing-source.ts'
import { record } from './recorder.ts'
import { everyCut, marksBefore, Replay, type Cut } from './replay.ts'
import { aStandby, DOMAIN, type Standby } from './standby.ts'
import { currentOf, generationsIn, wrongIn } from './truth.ts'

const MIB = 1024 * 1024

export interface Way {
  readonly name: string
  readonly type: FileSystem
  /** Settings of the domain. */
  readonly settings: readonly string[]
}

/** Every kind of store that lies in a file system. */
export const WAYS = {
  reflink: { name: 'reflink on XFS', type: 'xfs', settings: ['generations: reflink'] },
  'in-place': { name: 'in place on ext4', type: 'ext4', settings: ['generations: in-place'] },
  'in-place-xfs': { name: 'in place on XFS', type: 'xfs', settings: ['generations: in-place'] },
  copy: { name: 'copies on ext4', type: 'ext4', settings: ['generations: copy'] },
} as const satisfies Record<string, Way>
export type WayName = keyof typeof WAYS

/** What stands once a command has ended. */
interface Stage {
  readonly what: string
  readonly current: string | undefined
  readonly generations: readonly string[]
}

export interface Recorded extends AsyncDisposable {
  readonly source: ChangingSource
  readonly way: Way
  readonly replay: Replay
  readonly cuts: readonly Cut[]
  readonly stages: readonly Stage[]
}

/** vda has data, a hole and an odd end; vdb is as small as can be. */
export const small = (): Disks => ({
  vda: {
    format: 'raw',
    content: Buffer.concat([randomBytes(2 * MIB), Buffer.alloc(MIB), randomBytes(MIB + 512)]),
  },
  vdb: { format: 'qcow2', content: randomBytes(MIB) },
})

type Do = (command: string, ...more: string[]) => Promise<void>

/** Publishes a first and later pulls, prunes, goes back and forward. */
async function live(source: ChangingSource, standby: Standby, way: Way, does: Do): Promise<void> {
  let disks = small()
  for (const chunks of [[], [0, 3], [1], [0]]) {
    disks = altered(disks, 'vda', ...chunks)
    await source.become(disks)
    await does('pull')
  }
  await standby.configure('keep: { last: 2 }', ...way.settings)
  await does('prune')
  const [oldest] = await generationsIn(standby.dir)
  await does('rollback', oldest ?? '')
  await does('rollback', 'newest')
}

/** Runs the commands, each of which must succeed. */
export async function recordCommands(
  source: ChangingSource,
  way: Way,
  dice: Dice,
): Promise<Recorded> {
  await using recorder = await record(way.type)
  const store = path.join(recorder.mounted, 'store')
  const standby = await aStandby(source, store, 'keep: { last: 3 }', ...way.settings)
  const stages: Stage[] = []
  const over = async (what: string): Promise<void> => {
    await recorder.mark(what)
    const [current, generations] = await Promise.all([
      currentOf(standby.dir),
      generationsIn(standby.dir),
    ])
    stages.push({ what, current, generations })
  }
  const does: Do = async (command, ...more) => {
    const { code, stdout, stderr } = await standby.quick({}, command, ...more)
    if (code !== 0) throw new Error(`clone ${command} exits ${code}: ${stderr}${stdout}`)
    await over(['clone', command, ...more].join(' '))
  }
  await execa('sync', ['--file-system', recorder.mounted])
  await over('mount')
  await live(source, standby, way, does)
  const replay = await Replay.of(recorder, dice)
  const cuts = everyCut(replay.events)
  return {
    source,
    way,
    replay,
    stages,
    cuts,
    [Symbol.asyncDispose]: () => replay[Symbol.asyncDispose](),
  }
}

/** What was wrong after one cut; nothing, when the clone was whole again. @param heal whether to pull then, too */
export async function wrongAfter(
  { source, way, replay, stages }: Recorded,
  cut: Cut,
  heal: boolean,
): Promise<string[]> {
  const ended = marksBefore(replay.events, cut)
  const before = stages[ended - 1]
  const after = stages[ended] ?? before
  if (!before || !after) throw new Error('the cut is before the first mark')
  return replay.after(cut, async mounted => {
    const standby = await aStandby(source, path.join(mounted, 'store'), ...way.settings)
    const clone = cloneConfig(loadConfig(standby.configFile), DOMAIN)
    const [status] = await statusCommand([clone])
    const wrong = [...(status?.problems ?? [])]
    const current = await currentOf(standby.dir)
    const may = allowed(before, after)
    if (!may.includes(current)) wrong.push(`current is ${current}, not ${may.join(' or ')}`)
    const have = await generationsIn(standby.dir)
    for (const id of before.generations)
      if (after.generations.includes(id) && !have.includes(id)) wrong.push(`${id} is gone`)
    if (current !== undefined)
      wrong.push(...(await wrongIn(path.join(standby.dir, 'current'), source.known)))
    if (heal) wrong.push(...(await wrongToHeal(standby)))
    return wrong.map(one => `power cut at ${cut.at} (${cut.unflushed}), in ${after.what}: ${one}`)
  })
}

/** Going back over several generations stops at each of them. */
function allowed(before: Stage, after: Stage): (string | undefined)[] {
  const ends = [before.current, after.current]
  if (!after.what.startsWith('clone rollback')) return ends
  return [...ends, ...before.generations]
}

/** One command, not a pull, must have been enough; a pull then goes as if nothing had been. */
async function wrongToHeal(standby: Standby): Promise<string[]> {
  const wrong: string[] = []
  const forward = await standby.quick({}, 'rollback', 'newest')
  if (forward.code !== 0 && (await currentOf(standby.dir)) !== undefined)
    wrong.push(`going to the newest exits ${forward.code}: ${forward.stderr}`)
  const { code, stderr } = await standby.quick({}, 'pull')
  if (code !== 0) return [...wrong, `the next pull exits ${code}: ${stderr}`]
  for (const id of await generationsIn(standby.dir)) {
    const verified = await standby.quick({}, 'verify', id)
    if (verified.code !== 0) wrong.push(`verify ${id} exits ${verified.code}: ${verified.stderr}`)
  }
  return [...wrong, ...(await wrongIn(path.join(standby.dir, 'current'), standby.source.known))]
}
