// Random processes killed at random moments, again and again, while the guest writes and clients pull.

import { setTimeout as delay } from 'node:timers/promises'
import { waitFor } from '../lab/processes.ts'
import { killOnSource, type Victim } from './processes.ts'
import type { Chance, Happened, Scenario } from './scenario.ts'
import type { Puller, World } from './world.ts'

const ROUNDS = 25
const MOST_MS = 3000
const VICTIMS: readonly Victim[] = [
  'serve',
  'hook',
  'nbd-server',
  'virsh',
  'libvirtd',
  'client',
  'QEMU',
]

/** Pulls one after the other until it is told to stop. */
function keepPulling(
  world: World,
): { current: () => Puller; stop: () => Promise<number[]> } & Disposable {
  const exits: number[] = []
  const stop = new AbortController()
  let current = world.pull()
  const pulling = (async () => {
    for (;;) {
      exits.push((await current.result).exitCode)
      if (stop.signal.aborted) return
      await delay(100)
      current = world.pull()
    }
  })()
  return {
    current: () => current,
    async stop() {
      stop.abort()
      await pulling
      return exits
    },
    // Without waiting: a row that fails must not go on pulling.
    [Symbol.dispose]: () => stop.abort(),
  }
}

/** Each fault with what a host would do by itself: systemd starts services again, an admin starts the domain. */
async function breakOne(
  world: World,
  victim: Victim,
  chance: Chance,
  client: Puller,
): Promise<void> {
  world.strike()
  if (victim === 'client') client.process.signal('SIGKILL')
  else await killOnSource(world.lab, victim)
  if (victim === 'serve') await world.restartServe()
  if (victim === 'libvirtd') {
    await delay(500)
    await world.startLibvirtd()
  }
  if (victim !== 'QEMU') return
  await delay(chance.dice() * MOST_MS)
  await waitFor('the domain to start', 90, async () => {
    await world.lab.source(['virsh', '-q', 'start', 'mydomain'], { reject: false })
    const { stdout } = await world.lab.source(['virsh', 'domstate', 'mydomain'], { reject: false })
    return stdout.trim() === 'running'
  })
  await world.untilAgent()
}

async function random(world: World, chance: Chance): Promise<Happened> {
  const rounds = chance.rounds ?? ROUNDS
  using pulls = keepPulling(world)
  const killed = new Map<Victim, number>()
  for (let round = 0; round < rounds; round++) {
    await delay(chance.dice() * MOST_MS)
    const victim = VICTIMS[Math.floor(chance.dice() * VICTIMS.length)] ?? 'serve'
    // A guest that is frozen just now writes nothing, and cannot say so.
    await world.note().catch(() => undefined)
    await breakOne(world, victim, chance, pulls.current())
    killed.set(victim, (killed.get(victim) ?? 0) + 1)
  }
  const exits = await pulls.stop()
  const done = exits.filter(exit => exit === 0).length
  const wrong = exits.filter(exit => exit === 1 || exit === 2).map(exit => `a pull exits ${exit}`)
  const kills = [...killed].map(([victim, times]) => `${times} ${victim}`).join(', ')
  return { wrong, note: `${rounds} kills (${kills}); ${done} of ${exits.length} pulls succeeded` }
}

export const RANDOM: readonly Scenario[] = [
  {
    name: 'random',
    step: 'any',
    fault: 'SIGKILL of random processes at random moments',
    sample: true,
    pull: true,
    patience: 7200_000,
    run: random,
  },
]
