// SIGKILL at every step of the journal, before and after what virsh does there: of the hook, nbd-server, serve, the client
// and virsh.

import { setTimeout as delay } from 'node:timers/promises'
import { waitFor } from '../lab/processes.ts'
import { CALLS, type HeldStep } from './holds.ts'
import { stopAtStep } from './journal.ts'
import type { Victim } from './processes.ts'
import type { Happened, InLab, Scenario } from './scenario.ts'
import type { World } from './world.ts'

type Killed = Extract<Victim, 'hook' | 'nbd-server' | 'serve' | 'client' | 'virsh'>
const EACH: readonly Killed[] = ['hook', 'nbd-server', 'serve', 'client', 'virsh']
const MOMENTS = ['before', 'after'] as const

/** Until the freeze is over a pull stands there; a stock client's postrun stands there while its session is merged. */
const BEGIN: readonly HeldStep[] = ['freeze', 'snapshot', 'thaw']
const END: readonly HeldStep[] = ['merge', 'pivot', 'clean']

/** One kill while virsh stands; then virsh goes on, as a call that is on its way would, and serve is started again. */
async function killAt(
  world: World,
  when: 'before' | 'after',
  call: string,
  victim: Killed,
  begins: boolean,
): Promise<Happened> {
  const hold = await world.hold(when, call)
  const puller = begins ? world.pull() : world.stockClient()
  await hold.reached()
  if (!begins) await world.note()
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

/** At a step that has no call of its own, serve is stopped by SIGSTOP for the time of the kill. */
async function killStopped(
  world: World,
  step: 'intent' | 'done',
  victim: Killed,
): Promise<Happened> {
  const { puller, resume } = await stopAtStep(world, step, () =>
    step === 'intent' ? world.pull() : world.stockClient(),
  )
  await world.kill(victim, puller)
  resume()
  if (victim === 'serve') await world.restartServe()
  return { puller }
}

/** In the middle of the copy. */
async function killCopying(world: World, victim: Killed): Promise<Happened> {
  const puller = await world.heldPull()
  await world.note()
  await world.kill(victim, puller)
  puller.release()
  if (victim === 'serve') await world.restartServe()
  return { puller }
}

/** Rows that `npm test` has too: each victim and each step at least once. */
const SAMPLE = [
  'kill-hook-snapshot-before',
  'kill-nbd-server-intent',
  'kill-client-thaw-after',
  'kill-virsh-merge-after',
  'kill-serve-pivot-after',
  'kill-serve-bitmap',
]

function row(place: string, step: string, victim: Killed, run: InLab['run']): Scenario {
  const name = `kill-${victim}-${place}`
  return { name, step, fault: `SIGKILL of ${victim}`, sample: SAMPLE.includes(name), run }
}

const atCalls = [...BEGIN, ...END].flatMap(step =>
  MOMENTS.flatMap(when =>
    EACH.map(victim =>
      row(`${step}-${when}`, `${step}, ${when} virsh`, victim, world =>
        killAt(world, when, CALLS[step], victim, BEGIN.includes(step)),
      ),
    ),
  ),
)

/** No virsh runs at these steps, and a prerun has returned before the copy. */
const withoutCall = (['hook', 'nbd-server', 'serve', 'client'] as const).flatMap(victim => [
  row('intent', 'intent', victim, world => killStopped(world, 'intent', victim)),
  ...(victim === 'hook'
    ? []
    : [row('frozen', 'frozen, copying', victim, world => killCopying(world, victim))]),
  row('done', 'done', victim, world => killStopped(world, 'done', victim)),
])

const secondDisk = (['serve', 'virsh', 'nbd-server'] as const).map(victim =>
  row('merge-second', 'merge of the second disk', victim, world =>
    killAt(world, 'after', 'merge *blockcommit* vdb *', victim, false),
  ),
)

const FREEZE_STATUS = '{"execute":"guest-fsfreeze-status"}'
/** The freeze deadline, and what a busy machine needs to act on it. */
const THAW_SECONDS = 15

/** Nobody is left but the dead-man: the guest must be thawed before anybody starts serve. */
async function killAllFrozen(world: World): Promise<Happened> {
  const hold = await world.hold('before', CALLS.snapshot)
  const puller = world.pull()
  await hold.reached()
  await world.kill('hook')
  await world.kill('serve')
  await hold.release()
  const since = performance.now()
  await waitFor('the thaw', THAW_SECONDS, async () => {
    const ask = ['timeout', '5', 'virsh', 'qemu-agent-command', 'mydomain', FREEZE_STATUS]
    return (await world.lab.source(ask, { reject: false })).stdout.includes('thawed')
  })
  const thawed = ((performance.now() - since) / 1000).toFixed(1)
  await world.restartServe()
  return { puller, note: `thawed after ${thawed} s, before serve was started` }
}

/** A virsh that outlives its serve and reaches libvirt when a new serve has recovered. */
async function lateVirsh(world: World, step: 'snapshot' | 'freeze'): Promise<Happened> {
  const hold = await world.hold('before', CALLS[step])
  const puller = world.pull()
  await hold.reached()
  await world.kill('serve')
  await world.restartServe()
  await delay(3000)
  await hold.release()
  await delay(3000)
  return { puller, note: 'the call came 3 s after the new serve' }
}

const together: readonly Scenario[] = [
  {
    name: 'kill-hook-and-serve-frozen',
    step: 'snapshot, guest frozen',
    fault: 'SIGKILL of hook and serve, serve not started',
    sample: true,
    run: killAllFrozen,
  },
  ...(['freeze', 'snapshot'] as const).map(step => ({
    name: `late-virsh-${step}`,
    step: `${step}, before virsh`,
    fault: 'SIGKILL of serve; its virsh reaches libvirt after serve is back',
    pull: true,
    run: (world: World) => lateVirsh(world, step),
  })),
]

/** QEMU has an export of a bitmap, and nobody who removes it. */
const whileReading = (['serve', 'nbd-server', 'client', 'virsh'] as const).map(victim =>
  row('bitmap', 'frozen, reading a bitmap', victim, async world => {
    // There is one to be read only after a pull.
    await world.pull().result
    return killAt(world, 'after', 'frozen *block-export-add*', victim, true)
  }),
)

export const KILLS: readonly Scenario[] = [
  ...withoutCall,
  ...atCalls,
  ...whileReading,
  ...secondDisk,
  ...together,
]
