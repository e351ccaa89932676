// A store that is broken again and again in one way, by the real program on a real file system. After each time one command
// must leave a whole clone, and the next pull must be as good as any.

import { execa } from 'execa'
import { existsSync } from 'node:fs'
import { readFile, rename, statfs, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { newRecoveryPointId } from '../../shared/names.ts'
import type { Dice } from '../faults/scenario.ts'
import { altered, changingSource } from './changing-source.ts'
import { small, type Way } from './powercut.ts'
import { record, type Recorder } from './recorder.ts'
import { fill, inPhase } from './mishaps.ts'
import { aStandby, type Standby } from './standby.ts'
import { currentOf, generationsIn, wrongIn } from './truth.ts'

const MIB = 1024 * 1024
/** A command takes about as long. */
const COMMAND_MS = 1500
/** Pulls before anything is broken: there are generations to prune and to go back to. */
const FILLING = 2
const SPACE = 22
const INTEGRITY = 21
const STANDBY_IO = 23
/** Internal errors and wrong usage: no fault may look like these. */
const NEVER = [1, 2]

interface Stand {
  readonly standby: Standby
  readonly medium: Recorder
  readonly dice: Dice
  /** The source has something new from now on. */
  readonly alter: () => Promise<void>
}
/** Breaks something once. @returns what was wrong already then */
type Break = (stand: Stand) => Promise<string[]>

const pick = <T>(dice: Dice, ...from: readonly [T, ...T[]]): T =>
  from[Math.floor(dice() * from.length)] ?? from[0]

/** Any command that writes to a clone. */
async function someCommand({ standby, dice }: Stand): Promise<[string, ...string[]]> {
  const [oldest = ''] = await generationsIn(standby.dir)
  const more: [string, ...string[]][] = [
    ['rollback', oldest],
    ['rollback', 'newest'],
  ]
  return pick<[string, ...string[]]>(dice, ['pull'], ['pull'], ['prune'], ['verify'], ...more)
}

const kill: Break = async stand => {
  const running = stand.standby.start(...(await someCommand(stand)))
  await delay(stand.dice() * COMMAND_MS)
  running.kill('SIGKILL')
  await running.ended
  return []
}

/** Somebody else leaves so little space that some command will meet the end at some phase. */
const space: Break = async stand => {
  // Root may use what is reserved, too.
  const { bfree, bsize } = await statfs(stand.medium.mounted)
  const ballast = path.join(stand.medium.mounted, 'ballast')
  const free = Math.floor(stand.dice() ** 2 * 12 * MIB)
  const most = Math.max(1, bfree * bsize - free)
  // A file system takes some of it for itself; ext4 leaves what it could give.
  const took = await execa('fallocate', ['-l', String(most), ballast], { reject: false })
  if (took.exitCode !== 0 && !existsSync(ballast))
    await execa('fallocate', ['-l', String(Math.max(1, most - 4 * MIB)), ballast])
  const command = await someCommand(stand)
  const { code, stderr } = await stand.standby.clone(...command)
  await execa('rm', ['-f', ballast])
  return code === 0 || code === SPACE ? [] : [`clone ${command.join(' ')} exits ${code}: ${stderr}`]
}

const io: Break = async stand => {
  const command = await someCommand(stand)
  const running = stand.standby.start(...command)
  await delay(stand.dice() * COMMAND_MS)
  stand.medium.fail(pick(stand.dice, 'writes', 'writes', 'reads'))
  const { code, stderr } = await running.ended
  stand.medium.fail('nothing')
  await stand.medium.remount()
  return NEVER.includes(code) ? [`clone ${command.join(' ')} exits ${code}: ${stderr}`] : []
}

/** Phases of a pull that its progress names; a pull with whole images has only the first two. */
const PHASES = ['copy', 'verify', 'save', 'patch'] as const

/** A pull that meets something as soon as it is in a phase; each phase in its turn. @returns what was wrong already then */
async function pullMeeting(
  { standby, alter }: Stand,
  meets: (phase: (typeof PHASES)[number]) => void,
  over: () => Promise<unknown>,
  exits: number,
): Promise<string[]> {
  const wrong: string[] = []
  for (const phase of PHASES) {
    const times = { met: 0 }
    const act = (): void => {
      times.met++
      meets(phase)
    }
    const { code, stderr } = await standby.quick({ watcher: inPhase(phase, act) }, 'pull')
    await over()
    if (times.met > 0 && code !== exits)
      wrong.push(`a pull that fails in ${phase} exits ${code}: ${stderr}`)
    if (times.met === 0 && (phase === 'copy' || phase === 'verify'))
      wrong.push(`no pull was in ${phase}`)
    if (times.met === 0) break
    wrong.push(...(await wrongAfterwards(standby)).map(one => `after ${phase}: ${one}`))
    await alter()
  }
  return wrong
}

/** Its disk fails at the beginning of each phase. */
const ioPhases: Break = stand => {
  const { medium } = stand
  const fails = (phase: string): void => medium.fail(phase === 'verify' ? 'reads' : 'writes')
  const mend = async (): Promise<void> => {
    medium.fail('nothing')
    await medium.remount()
  }
  return pullMeeting(stand, fails, mend, STANDBY_IO)
}

/** Somebody else takes all space at the beginning of each phase. */
const spacePhases: Break = stand => {
  const { mounted } = stand.medium
  const free = () => execa('rm', ['-f', path.join(mounted, 'ballast'), path.join(mounted, 'rest')])
  return pullMeeting(stand, () => fill(mounted), free, SPACE)
}

/** One bit of the newest generation. */
const flip: Break = async ({ standby, dice }) => {
  const id = (await generationsIn(standby.dir)).at(-1) ?? ''
  const dir = path.join(standby.dir, 'generations', id)
  const file = path.join(dir, pick(dice, 'vda.raw', 'vdb.qcow2', 'vda.manifest', 'vdb.manifest'))
  const bytes = await readFile(file)
  const at = Math.floor(dice() * bytes.length)
  bytes.writeUInt8(bytes.readUInt8(at) ^ (1 << Math.floor(dice() * 8)), at)
  await writeFile(file, bytes)
  return isFound(standby, id, `bit ${at} of ${path.basename(file)}`)
}

const swap: Break = async ({ standby }) => {
  const id = (await generationsIn(standby.dir)).at(-1) ?? ''
  const dir = path.join(standby.dir, 'generations', id)
  const [one, other, aside] = ['vda.manifest', 'vdb.manifest', 'aside'].map(name =>
    path.join(dir, name),
  ) as [string, string, string]
  await rename(one, aside)
  await rename(other, one)
  await rename(aside, other)
  return isFound(standby, id, 'swapped manifests')
}

/** generation.json says another digest. */
const digest: Break = async ({ standby }) => {
  const id = (await generationsIn(standby.dir)).at(-1) ?? ''
  const file = path.join(standby.dir, 'generations', id, 'generation.json')
  const text = await readFile(file, 'utf8')
  await writeFile(
    file,
    text.replace(/("digest": ")(.)/, (_, key: string, digit: string) => {
      return `${key}${digit === '0' ? '1' : '0'}`
    }),
  )
  return isFound(standby, id, 'a digest in generation.json')
}

async function isFound(standby: Standby, id: string, what: string): Promise<string[]> {
  const { code, stderr } = await standby.quick({}, 'verify', id)
  const wrong = code === INTEGRITY ? [] : [`verify of ${what} exits ${code}: ${stderr}`]
  if ((await currentOf(standby.dir)) === id) wrong.push(`${what}: current still shows it`)
  return wrong
}

/** The source's clock stands days off; order must not come from it. */
const clock: Break = async ({ standby, dice }) => {
  const { handlers } = standby.source.fake
  const usual = { ...handlers }
  const days = Math.round((dice() - 0.5) * 60)
  const then = new Date(Date.now() + days * 86_400_000)
  const id = newRecoveryPointId(then)
  const recoveryPoint = { id, instant: then.toISOString(), consistency: 'crash' as const }
  handlers.hello = async params => ({ ...(await usual.hello(params)), clockMs: then.getTime() })
  handlers['session.info'] = async params => {
    const info = await usual['session.info'](params)
    standby.source.alias(info.recoveryPoint.id, id)
    return { ...info, recoveryPoint }
  }
  handlers['session.release'] = () => ({ recoveryPoint: id })
  const { code, stderr } = await standby.clone('pull')
  Object.assign(handlers, usual)
  const shown = await currentOf(standby.dir)
  if (code !== 0) return [`a pull with a clock ${days} days off exits ${code}: ${stderr}`]
  return shown === id ? [] : [`the newest is ${id}, ${days} days off, and current ${shown}`]
}

export const BREAKS = {
  kill,
  space,
  'space-phases': spacePhases,
  io,
  'io-phases': ioPhases,
  flip,
  swap,
  digest,
  clock,
} as const
export type BreakName = keyof typeof BREAKS

/** Breaks a store so many times. @returns what was wrong, each with the round it was in */
export async function breakAgain(
  way: Way,
  broken: BreakName,
  rounds: number,
  dice: Dice,
): Promise<string[]> {
  await using source = await changingSource(['vda', 'vdb'])
  await using medium = await record(way.type, false)
  const store = path.join(medium.mounted, 'store')
  const standby = await aStandby(source, store, 'keep: { last: 3 }', ...way.settings)
  const wrong: string[] = []
  let disks = small()
  const alter = async (): Promise<void> => {
    disks = altered(disks, 'vda', Math.floor(dice() * 4))
    await source.become(disks)
  }
  const stand = { standby, medium, dice, alter }
  // The store is filled first.
  for (let round = 1 - FILLING; round <= rounds; round++) {
    await alter()
    const now = round < 1 ? [] : await BREAKS[broken](stand)
    now.push(...(await wrongAfterwards(standby)))
    wrong.push(...now.map(one => `${broken}, round ${round}: ${one}`))
  }
  return wrong
}

async function wrongAfterwards(standby: Standby): Promise<string[]> {
  const wrong: string[] = []
  const does = async (...[command, ...more]: [string, ...string[]]): Promise<void> => {
    const { code, stderr } = await standby.quick({}, command, ...more)
    if (code !== 0) wrong.push(`clone ${[command, ...more].join(' ')} exits ${code}: ${stderr}`)
  }
  const looks = async (): Promise<void> => {
    if ((await currentOf(standby.dir)) !== undefined)
      wrong.push(...(await wrongIn(path.join(standby.dir, 'current'), standby.source.known)))
  }
  await does('status')
  await looks()
  if (existsSync(path.join(standby.dir, 'undo.json')))
    wrong.push('its undo journal is open after a command')
  // One that is rolled back to what proved bad shows nothing, and says in what direction to go.
  if (await isRolledBack(standby.dir)) await does('rollback', 'newest')
  await does('pull')
  if ((await currentOf(standby.dir)) === undefined) wrong.push('there is no current after a pull')
  await looks()
  return wrong
}

async function isRolledBack(dir: string): Promise<boolean> {
  const text = await readFile(path.join(dir, 'state.json'), 'utf8').catch(() => '{}')
  const { selected = 'newest' } = JSON.parse(text) as { selected?: unknown }
  return selected !== 'newest'
}
