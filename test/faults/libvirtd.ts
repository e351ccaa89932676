// libvirtd killed in the middle of what it does, and started again as systemd would: at each step, at many delays, and for
// certain in the two windows in which it loses sight of what QEMU does.

import { setTimeout as delay } from 'node:timers/promises'
import { readFileSync } from 'node:fs'
import { signal } from '../lab/processes.ts'
import { CALLS } from './holds.ts'
import type { Monitor } from './monitor.ts'
import { processesOn } from './processes.ts'
import type { Happened, Scenario } from './scenario.ts'
import type { Puller, World } from './world.ts'

const STATUS_XML = '/run/libvirt/qemu/mydomain.xml'
const RESTART_MS = 500
/** Sessions in which a window is looked for. */
const ATTEMPTS = 6
/** One stretch of libvirtd's work between two looks; each window is several times as long. */
const STRETCH_MS = 1

type Window = 'snapshot' | 'pivot'

async function libvirtdPid(world: World): Promise<number> {
  const found = (await processesOn(world.lab, 'source')).find(
    ({ command }) => command === 'libvirtd',
  )
  if (!found) throw new Error('libvirtd does not run')
  return found.pid
}

async function restart(world: World): Promise<void> {
  await delay(RESTART_MS)
  await world.startLibvirtd()
}

async function killNow(world: World): Promise<void> {
  await world.kill('libvirtd')
  await restart(world)
}

/** A session that stands before the call that the window is in. */
async function standing(
  world: World,
  window: Window,
): Promise<{ puller: Puller; go: () => Promise<void> }> {
  const hold = await world.hold('before', CALLS[window])
  const puller = window === 'snapshot' ? world.pull() : world.stockClient()
  await hold.reached()
  if (window === 'pivot') await world.note()
  return { puller, go: () => hold.release() }
}

/** Whether libvirt would lose sight of QEMU if it died now, by its own files and QEMU's own word. */
async function isBlind(world: World, window: Window, monitor: Monitor): Promise<boolean> {
  const xml = await statusXml(world)
  if (window === 'pivot') return /<mirror[^>]* job=''/.test(xml)
  const onOverlay = (await monitor.chains()).some(([active]) => active?.includes('.nbd-clone.'))
  return onOverlay && !/<source file='[^']*\.nbd-clone\./.test(xml)
}

async function statusXml(world: World): Promise<string> {
  try {
    return readFileSync(await world.lab.path('source', STATUS_XML), 'utf8')
  } catch {
    return ''
  }
}

/** Kills libvirtd at a fixed time into the call. */
async function killAfter(world: World, window: Window, ms: number): Promise<Happened> {
  const { puller, go } = await standing(world, window)
  const pid = await libvirtdPid(world)
  await go()
  await delay(ms)
  world.strike()
  signal(pid, 'SIGKILL')
  using monitor = await world.monitor()
  const blind = await isBlind(world, window, monitor)
  await restart(world)
  return { puller, note: blind ? 'libvirt had lost sight of QEMU' : 'outside the window' }
}

/** Lets libvirtd work in short stretches, looks after each, and kills it when it stands in the window. */
async function killInWindow(world: World, window: Window): Promise<Happened> {
  for (let attempt = 1; attempt <= ATTEMPTS; attempt++) {
    const { puller, go } = await standing(world, window)
    const pid = await libvirtdPid(world)
    using monitor = await world.monitor()
    await go()
    const hit = await killWhenBlind(world, window, pid, monitor, puller)
    if (!hit) {
      await puller.result
      await world.untilStep('done')
      continue
    }
    await restart(world)
    const { stdout } = await world.lab.source(['virsh', 'domstate', 'mydomain'], { reject: false })
    const said = window === 'pivot' ? `; libvirt then said: ${stdout.trim()}` : ''
    return { puller, note: `in the window at session ${attempt}${said}` }
  }
  throw new Error(`the ${window} window was not hit in ${ATTEMPTS} sessions`)
}

async function killWhenBlind(
  world: World,
  window: Window,
  pid: number,
  monitor: Monitor,
  puller: Puller,
): Promise<boolean> {
  const last = window === 'snapshot' ? 'snapshot' : 'pivot'
  try {
    for (
      let step: string | undefined = last;
      !puller.isOver() && step === last;
      step = await world.lastStep()
    )
      for (let stretch = 0; stretch < 50; stretch++) {
        signal(pid, 'SIGSTOP')
        if (await isBlind(world, window, monitor)) {
          // While it stands: it must not get one instruction further.
          world.strike()
          signal(pid, 'SIGKILL')
          return true
        }
        signal(pid, 'SIGCONT')
        await delay(STRETCH_MS)
      }
    return false
  } finally {
    signal(pid, 'SIGCONT')
  }
}

/** Kills libvirtd while virsh stands before or after a call. */
async function killAround(
  world: World,
  when: 'before' | 'after',
  step: 'freeze' | 'merge',
): Promise<Happened> {
  const hold = await world.hold(when, CALLS[step])
  const puller = step === 'freeze' ? world.pull() : world.stockClient()
  await hold.reached()
  if (step === 'merge') await world.note()
  await killNow(world)
  await hold.release()
  return { puller }
}

async function killCopying(world: World): Promise<Happened> {
  const puller = await world.heldPull()
  await world.note()
  await killNow(world)
  puller.release()
  return { puller }
}

const FAULT = 'SIGKILL of libvirtd'
const DELAYS = { snapshot: [10, 25, 35, 40, 45, 60], pivot: [4, 8, 12, 16, 21, 30] } as const

export const LIBVIRTD: readonly Scenario[] = [
  ...(['freeze', 'merge'] as const).flatMap(step =>
    (['before', 'after'] as const).map(when => ({
      name: `libvirtd-${step}-${when}`,
      step: `${step}, ${when} virsh`,
      fault: FAULT,
      pull: true,
      run: (world: World) => killAround(world, when, step),
    })),
  ),
  { name: 'libvirtd-frozen', step: 'frozen, copying', fault: FAULT, pull: true, run: killCopying },
  ...(['snapshot', 'pivot'] as const).flatMap(window => [
    {
      name: `libvirtd-${window}-window`,
      step: `${window}, QEMU has done it and libvirt has not saved it`,
      fault: FAULT,
      sample: true,
      pull: true,
      run: (world: World) => killInWindow(world, window),
    },
    ...DELAYS[window].map(ms => ({
      name: `libvirtd-${window}-${ms}ms`,
      step: `${window}, ${ms} ms into virsh`,
      fault: FAULT,
      pull: true,
      run: (world: World) => killAfter(world, window, ms),
    })),
  ]),
]
