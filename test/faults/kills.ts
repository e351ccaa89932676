// SIGKILL at every step of the journal, before and after what virsh does there: of the hook, nbd-server, serve, the client
// and virsh.

import { CALLS, type HeldStep } from './holds.ts'
import type { Victim } from './processes.ts'
import type { Scenario } from './scenario.ts'
import type { World } from './world.ts'

type Killed = Extract<Victim, 'hook' | 'nbd-server' | 'serve' | 'client' | 'virsh'>
const EACH: readonly Killed[] = ['hook', 'nbd-server', 'serve', 'client', 'virsh']
const MOMENTS = ['before', 'after'] as const

/** Until the freeze is over a pull stands there; a stock client's postrun stands there while its session is merged. */
const BEGIN: readonly HeldStep[] = ['freeze', 'snapshot', 'thaw']
const END: readonly HeldStep[] = ['merge', 'pivot', 'clean']

/** One kill while virsh stands; then virsh goes on, as a call that is on its way would, and serve is started again. */
async function killAt(world: World, when: 'before' | 'after', step: HeldStep, victim: Killed) {
  const hold = await world.hold(when, CALLS[step])
  const puller = BEGIN.includes(step) ? world.pull() : world.stockClient()
  await hold.reached()
  if (!BEGIN.includes(step)) await world.note()
  if (victim === 'virsh') {
    world.strike()
    await hold.kill()
  } else {
    await world.kill(victim, puller)
    await hold.release()
  }
  if (victim === 'serve') await world.restartServe()
  return { puller }
}

/** Rows that `npm test` has too: each victim once, each step once. */
const SAMPLE = [
  'hook-snapshot-before',
  'nbd-server-thaw-after',
  'serve-pivot-after',
  'virsh-freeze-before',
  'virsh-merge-after',
]

function rowOf(step: HeldStep, when: 'before' | 'after', victim: Killed): Scenario {
  const name = `${victim}-${step}-${when}`
  return {
    name: `kill-${name}`,
    step: `${step}, ${when} it is done`,
    fault: `SIGKILL of ${victim}`,
    sample: SAMPLE.includes(name),
    run: world => killAt(world, when, step, victim),
  }
}

export const KILLS: readonly Scenario[] = [...BEGIN, ...END].flatMap(step =>
  MOMENTS.flatMap(when => EACH.map(victim => rowOf(step, when, victim))),
)
