// Store tests as a program of its own, as built: node dist/test/store/run.js power|BREAK WAY SEED COUNT. It takes a mount
// namespace of its own to run in, and prints one line of JSON: how many times it was broken, and what was wrong.

import { diceOf } from '../faults/scenario.ts'
import { breakAgain, BREAKS, type BreakName } from './breaking.ts'
import { changingSource } from './changing-source.ts'
import { recordCommands, WAYS, wrongAfter, type Way, type WayName } from './powercut.ts'
import { someOf } from './replay.ts'

export interface Told {
  readonly times: number
  readonly wrong: readonly string[]
}

/** After every so manieth power cut comes a pull. */
const HEAL_EVERY = 12

const [what = '', wayName = '', seed = '', count = ''] = process.argv.slice(2)
if (!(wayName in WAYS)) throw new Error(`no way of keeping generations is called ${wayName}`)
const way = WAYS[wayName as WayName]
const dice = diceOf(Number(seed))

async function cutPower(way: Way): Promise<Told> {
  await using source = await changingSource(['vda', 'vdb'])
  await using recorded = await recordCommands(source, way, dice)
  const cuts = someOf(recorded.cuts, Number(count), dice)
  const wrong: string[] = []
  for (const [index, cut] of cuts.entries())
    wrong.push(...(await wrongAfter(recorded, cut, index % HEAL_EVERY === 1)))
  return { times: cuts.length, wrong }
}

async function tell(): Promise<Told> {
  if (what === 'power') return cutPower(way)
  if (!(what in BREAKS)) throw new Error(`nothing is broken by ${what}`)
  const wrong = await breakAgain(way, what as BreakName, Number(count), dice)
  return { times: Number(count), wrong }
}

process.stdout.write(`${JSON.stringify(await tell())}\n`)
