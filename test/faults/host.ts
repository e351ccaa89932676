// What happens to the source host: its power, its network, the file system of its overlays.

import { sourceConfig } from '../lab/world.ts'
import { CALLS, type HeldStep } from './holds.ts'
import type { Happened, Scenario } from './scenario.ts'
import type { World } from './world.ts'

async function cutPower(world: World): Promise<void> {
  world.strike()
  await world.lab.powerCut('source')
  await world.lab.boot('source')
  await world.startServe()
}

async function powerCutCopying(world: World): Promise<Happened> {
  const puller = await world.heldPull()
  await world.note()
  await cutPower(world)
  puller.release()
  return { puller }
}

async function powerCutAt(
  world: World,
  step: HeldStep,
  when: 'before' | 'after',
): Promise<Happened> {
  await world.note()
  const hold = await world.hold(when, CALLS[step])
  const puller = world.stockClient()
  await hold.reached()
  // A guest that is frozen cannot be asked; what it had synced before is asked for above.
  if (step !== 'snapshot') await world.note()
  await cutPower(world)
  return { puller }
}

async function networkCut(world: World): Promise<Happened> {
  const puller = await world.heldPull()
  await world.note()
  world.strike()
  await world.lab.netCut()
  return { puller, afterwards: () => world.lab.netHeal() }
}

const SMALL = '/var/lib/small'
const MAKE_SMALL = `set -e
truncate -s 200M /var/lib/small.img
mkfs.ext4 -q -F /var/lib/small.img
mkdir -p ${SMALL}
mount -o loop /var/lib/small.img ${SMALL}
chmod 777 ${SMALL}`
const FILL = `fallocate -l $(($(df --output=avail -B1 ${SMALL} | tail -n 1) - 4096)) ${SMALL}/filler`

/** Somebody else fills the file system of the overlays: QEMU pauses the guest at its next write. */
async function overlaySpaceGone(world: World): Promise<Happened> {
  const { lab } = world
  await lab.source(['sh', '-c', MAKE_SMALL])
  // libvirt gives each QEMU mounts of its own: one that runs already does not see the new file system.
  await lab.source(['virsh', '-q', 'destroy', 'mydomain'])
  await world.startGuest()
  await world.configure(sourceConfig(`overlayDir: ${SMALL}`))
  const puller = await world.heldPull()
  await world.note()
  world.strike()
  await lab.source(['sh', '-c', FILL])
  const paused = await world.untilState('paused', 20).then(
    () => 'the guest was paused, and resumed',
    () => 'the session ended before the guest met the end',
  )
  puller.release()
  return {
    puller,
    note: paused,
    async afterwards() {
      await lab.source(['rm', '-f', `${SMALL}/filler`])
      await world.configure(sourceConfig())
      await lab.source(['sh', '-c', `umount ${SMALL} && rm /var/lib/small.img`])
    },
  }
}

const POWER = [
  ['snapshot', 'before'],
  ['snapshot', 'after'],
  ['merge', 'before'],
  ['merge', 'after'],
  ['pivot', 'before'],
  ['pivot', 'after'],
] as const

export const HOST: readonly Scenario[] = [
  {
    name: 'power-copy',
    step: 'frozen, copying',
    fault: 'power cut of the source; serve started, the guest not',
    leaves: 'shut off',
    pull: true,
    sample: true,
    run: powerCutCopying,
  },
  ...POWER.map(([step, when]) => ({
    name: `power-${step}-${when}`,
    step: `${step}, ${when} virsh`,
    fault: 'power cut of the source; serve started, the guest not',
    leaves: 'shut off' as const,
    pull: true,
    run: (world: World) => powerCutAt(world, step, when),
  })),
  {
    name: 'network-copy',
    step: 'frozen, copying',
    fault: 'network cut',
    pull: true,
    sample: true,
    run: networkCut,
  },
  {
    name: 'overlay-space',
    step: 'frozen, copying',
    fault: 'the file system of the overlays is full',
    pull: true,
    sample: true,
    run: overlaySpaceGone,
  },
]
