// What the guest does, or what happens to its QEMU, during the copy and during the merge.

import { CALLS } from './holds.ts'
import type { Happened, Scenario } from './scenario.ts'
import type { Puller, World } from './world.ts'

interface GuestFault {
  readonly name: string
  readonly fault: string
  readonly leaves: 'running' | 'shut off'
  happen(world: World): Promise<void>
}

const FAULTS: readonly GuestFault[] = [
  {
    name: 'shutdown',
    fault: 'the guest shuts itself down',
    leaves: 'shut off',
    async happen(world) {
      await world.lab.source(['virsh', '-q', 'shutdown', 'mydomain', '--mode', 'agent'])
      await world.untilState('shut off')
    },
  },
  {
    name: 'reset',
    fault: 'reset',
    leaves: 'running',
    async happen({ lab }) {
      await lab.source(['virsh', '-q', 'reset', 'mydomain'])
    },
  },
  {
    name: 'crash',
    fault: 'SIGKILL of QEMU',
    leaves: 'shut off',
    async happen(world) {
      await world.kill('QEMU')
      await world.untilState('shut off')
    },
  },
]

async function strike(world: World, fault: GuestFault): Promise<void> {
  await world.note()
  world.strike()
  await fault.happen(world)
}

function afterwards(world: World, { leaves }: GuestFault): () => Promise<void> {
  return leaves === 'running' ? () => world.untilAgent() : () => Promise.resolve()
}

async function duringCopy(world: World, fault: GuestFault): Promise<Happened> {
  const puller = await world.heldPull()
  await strike(world, fault)
  puller.release()
  return { puller, afterwards: afterwards(world, fault) }
}

async function duringMerge(
  world: World,
  fault: GuestFault,
  when: 'before' | 'after',
): Promise<Happened> {
  const hold = await world.hold(when, CALLS.merge)
  const puller: Puller = world.stockClient()
  await hold.reached()
  await strike(world, fault)
  await hold.release()
  return { puller, afterwards: afterwards(world, fault) }
}

export const GUEST: readonly Scenario[] = FAULTS.flatMap(fault => [
  {
    name: `guest-${fault.name}-copy`,
    step: 'frozen, copying',
    fault: fault.fault,
    leaves: fault.leaves,
    pull: true,
    sample: fault.name === 'crash',
    run: (world: World) => duringCopy(world, fault),
  },
  ...(['before', 'after'] as const).map(when => ({
    name: `guest-${fault.name}-merge-${when}`,
    step: `merge, ${when} its block job is started`,
    fault: fault.fault,
    leaves: fault.leaves,
    pull: true,
    sample: fault.name === 'shutdown' && when === 'after',
    run: (world: World) => duringMerge(world, fault, when),
  })),
])
