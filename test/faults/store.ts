// What happens to a store, without a guest: each row is a program with a file system and a source of its own, in a mount
// namespace that ends with it.

import { execa } from 'execa'
import type { BreakName } from '../store/breaking.ts'
import { built, PLAIN } from '../store/built.ts'
import { WAYS, type WayName } from '../store/powercut.ts'
import type { Told } from '../store/run.ts'
import type { Chance, Happened, Scenario } from './scenario.ts'

const HOUR = 3_600_000
/** Wrong things that are told of one row; the rest is counted. */
const TOLD = 5

async function inNamespace(argv: readonly string[]): Promise<string> {
  const { exitCode, stdout, stderr } = await execa(
    'unshare',
    ['--mount', process.execPath, ...argv],
    { env: PLAIN, stdin: 'ignore', reject: false, timeout: HOUR },
  )
  if (exitCode !== 0 && stdout === '') throw new Error(`${argv.join(' ')}: ${stderr}`)
  return stdout
}

async function breaks(
  what: 'power' | BreakName,
  way: WayName,
  times: number,
  chance: Chance,
): Promise<Happened> {
  const seed = Math.floor(chance.dice() * 1_000_000)
  const count = String(chance.rounds ?? times)
  const told = await inNamespace([built('run'), what, way, String(seed), count])
  const { times: done, wrong } = JSON.parse(told) as Told
  const more = wrong.length - TOLD
  return {
    note: `${done} times with seed ${seed}; whole after one command, and the next pull succeeds`,
    wrong: [...wrong.slice(0, TOLD), ...(more > 0 ? [`and ${more} more`] : [])],
  }
}

/** All behaviours of one kind of store. */
async function conforms(kind: string): Promise<Happened> {
  const told = await inNamespace([built('conformance-run'), kind])
  const lines = told.split('\n')
  const good = lines.filter(line => line.startsWith('ok ')).length
  const wrong = lines.filter(line => line.startsWith('not ok '))
  if (good === 0) wrong.push(`no behaviour was held to: ${told}`)
  return { note: `${good} behaviours`, wrong }
}

const EVERY_WRITE = 100_000
const FAULTS: Readonly<Record<'power' | BreakName, readonly [fault: string, times: number]>> = {
  power: ['power cut at any write, what was not flushed kept or lost at random', EVERY_WRITE],
  kill: ['SIGKILL of clone at random moments', 12],
  space: ['its file system is nearly full', 10],
  'space-phases': ['its file system fills up as each phase of a pull begins', 2],
  'io-phases': ['its disk fails as each phase of a pull begins', 2],
  io: ['its disk fails to read or write at random moments', 10],
  flip: ['a random bit of an image or a manifest flips', 8],
  swap: ['two manifests are swapped', 2],
  digest: ['generation.json has another digest', 2],
  clock: ["the source's clock jumps by days", 10],
}

const KINDS = {
  reflink: 'reflink on XFS',
  copy: 'copy on ext4',
  'in-place': 'in place on ext4',
  device: 'in place on a block device',
} as const

export const STORE: readonly Scenario[] = [
  ...Object.entries(FAULTS).flatMap(([what, [fault, times]]) =>
    Object.entries(WAYS).map(([way, { name }]) => ({
      name: `store-${what}-${way}`,
      step: `clone, ${name}`,
      fault,
      patience: HOUR,
      alone: (chance: Chance) => breaks(what as 'power' | BreakName, way as WayName, times, chance),
    })),
  ),
  ...Object.entries(KINDS).map(([key, kind]) => ({
    name: `store-conformance-${key}`,
    step: `clone, ${kind}`,
    fault: 'disks change, pulls are interrupted, generations come and go',
    patience: HOUR,
    alone: () => conforms(kind),
  })),
]
