// What happens to the source host: its power, its network, the file system of its overlays.

import { CALLS } from './holds.ts'
import type { Happened, Scenario } from './scenario.ts'
import type { World } from './world.ts'

async function cutPower(world: World): Promise<void> {
  await world.note()
  world.strike()
  await world.lab.powerCut('source')
  await world.lab.boot('source')
  await world.startServe()
}

async function powerCutCopying(world: World): Promise<Happened> {
  const puller = await world.heldPull()
  await cutPower(world)
  puller.release()
  return { puller }
}

async function powerCutMerging(world: World, when: 'before' | 'after'): Promise<Happened> {
  const hold = await world.hold(when, CALLS.merge)
  const puller = world.stockClient()
  await hold.reached()
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
const ON_SMALL = `
listen: { tcp: { host: 10.77.77.1, insecure: true } }
domains: { mydomain: { overlayDir: ${SMALL} } }
`
const AS_BEFORE = `
listen: { tcp: { host: 10.77.77.1, insecure: true } }
domains: { mydomain: {} }
`
const FILL = `fallocate -l $(($(df --output=avail -B1 ${SMALL} | tail -n 1) - 4096)) ${SMALL}/filler`

/** Somebody else fills the file system of the overlays: QEMU pauses the guest at its next write. */
async function overlaySpaceGone(world: World): Promise<Happened> {
  const { lab } = world
  await lab.source(['sh', '-c', MAKE_SMALL])
  // libvirt gives each QEMU mounts of its own: one that runs already does not see the new file system.
  await lab.source(['virsh', '-q', 'destroy', 'mydomain'])
  await world.startGuest()
  await world.configure(ON_SMALL)
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
      await world.configure(AS_BEFORE)
      await lab.source(['sh', '-c', `umount ${SMALL} && rm /var/lib/small.img`])
    },
  }
}

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
  ...(['before', 'after'] as const).map(when => ({
    name: `power-merge-${when}`,
    step: `merge, ${when} its block job is started`,
    fault: 'power cut of the source; serve started, the guest not',
    leaves: 'shut off' as const,
    pull: true,
    run: (world: World) => powerCutMerging(world, when),
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
