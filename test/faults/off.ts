// A domain that is off, whose bases are read as they are, and which is then started.

import { waitFor } from '../lab/processes.ts'
import { RESTART_LIBVIRT } from '../lab/world.ts'
import type { Happened, Scenario } from './scenario.ts'
import type { World } from './world.ts'

const HOOK = '/etc/libvirt/hooks/qemu.d/nbd-clone'
const INSTALL = `clone-server config libvirt-hook | install -D -m 755 /dev/stdin ${HOOK}`

async function installHook({ lab }: World): Promise<void> {
  await lab.source(['sh', '-c', `${INSTALL}; sh ${RESTART_LIBVIRT}`])
  await waitFor(
    'libvirtd',
    20,
    async () => (await lab.source(['virsh', 'list'], { reject: false })).exitCode === 0,
  )
}

async function startWhileRead(world: World): Promise<Happened> {
  const { lab } = world
  await installHook(world)
  await world.note()
  await lab.source(['virsh', '-q', 'shutdown', 'mydomain', '--mode', 'agent'])
  await world.untilState('shut off')
  const puller = await world.heldPull()
  world.strike()
  await lab.source(['virsh', '-q', 'start', 'mydomain'])
  puller.release()
  return {
    puller,
    exits: [11],
    note: 'the domain runs',
    async afterwards() {
      await world.untilAgent()
      await lab.source(['rm', HOOK])
    },
  }
}

export const OFF: readonly Scenario[] = [
  {
    name: 'off-start',
    step: 'frozen, copying a domain that is off',
    fault: 'the domain is started',
    pull: true,
    sample: true,
    run: startWhileRead,
  },
]
