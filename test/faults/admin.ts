// What an admin may do to the domain in the middle of a session, not knowing or not caring that there is one.

import { waitFor } from '../lab/processes.ts'
import { IMAGES, VDA, VDB } from '../lab/world.ts'
import type { Happened, Scenario } from './scenario.ts'
import { DEFINITION, type World } from './world.ts'

type Act = (world: World) => Promise<Partial<Happened> | undefined>

/** Acts while a pull stands in its copy, which then goes on. */
async function whileCopying(world: World, act: Act): Promise<Happened> {
  const puller = await world.heldPull()
  await world.note()
  world.strike()
  const happened = await act(world)
  puller.release()
  return { puller, ...happened }
}

const virsh = async ({ lab }: World, ...args: string[]): Promise<void> => {
  await lab.source(['virsh', '-q', ...args], { timeout: 60_000 })
}

const EXTRA = `${IMAGES}/extra.raw`

async function attach(world: World): Promise<Partial<Happened>> {
  await world.lab.source(['truncate', '-s', '16M', EXTRA])
  await virsh(world, 'attach-disk', 'mydomain', EXTRA, 'vdc', '--persistent', '--cache', 'none')
  return {
    async afterwards() {
      await virsh(world, 'detach-disk', 'mydomain', 'vdc', '--persistent')
      await world.lab.source(['rm', EXTRA])
    },
  }
}

/** The writer is stopped first: without vdb it would go on with vda alone. At the next boot it goes on with both. */
async function detach(world: World): Promise<Partial<Happened>> {
  await world.lab.guest(['sh', '-c', 'kill "$(cat /run/writer.pid)"'])
  await world.note()
  world.strike()
  await virsh(world, 'detach-disk', 'mydomain', 'vdb', '--persistent')
  await waitFor('the guest to let go of vdb', 30, async () => {
    using monitor = await world.monitor()
    return (await monitor.chains()).every(chain => !chain.includes(VDB))
  })
  world.bases = { vda: VDA }
  return {
    async afterwards() {
      const argv = ['attach-disk', 'mydomain', VDB, 'vdb', '--subdriver', 'qcow2']
      await virsh(world, 'destroy', 'mydomain')
      await virsh(world, ...argv, '--cache', 'none', '--config')
      await world.startGuest()
    },
  }
}

async function resize(world: World): Promise<undefined> {
  const { stdout } = await world.lab.source(['stat', '-c', '%s', VDA])
  const kib = Number(stdout) / 1024 + 4096
  await virsh(world, 'blockresize', 'mydomain', 'vda', `${kib}K`)
}

/** Ours is merged; the admin's stays, until the admin merges it. */
async function stackSnapshot(world: World): Promise<Partial<Happened>> {
  const theirs = `${IMAGES}/admin.qcow2`
  const names = ['--domain', 'mydomain', '--name', 'admin', '--disk-only', '--no-metadata']
  const specs = ['--diskspec', `vda,file=${theirs}`, '--diskspec', 'vdb,snapshot=no']
  await virsh(world, 'snapshot-create-as', ...names, ...specs)
  world.bases = { vda: theirs, vdb: VDB }
  world.stacked = { [theirs]: VDA }
  return {
    note: 'the admin’s snapshot stayed, on the base',
    async afterwards() {
      const range = ['--base', VDA, '--top', theirs]
      await virsh(
        world,
        'blockcommit',
        'mydomain',
        'vda',
        ...range,
        '--active',
        '--pivot',
        '--wait',
      )
      await world.lab.source(['rm', theirs])
    },
  }
}

/** Undefined and destroyed: libvirt knows nothing of it any more. */
async function removeDomain(world: World): Promise<Partial<Happened>> {
  await virsh(world, 'destroy', 'mydomain')
  await virsh(world, 'undefine', 'mydomain')
  return {}
}

interface Deed {
  readonly name: string
  readonly fault: string
  readonly act: Act
  readonly leaves?: 'running' | 'shut off'
  readonly sample?: boolean
  readonly operator?: boolean
}

const DEEDS: readonly Deed[] = [
  { name: 'attach', fault: 'attach-disk', act: attach },
  { name: 'detach', fault: 'detach-disk', act: detach },
  { name: 'resize', fault: 'blockresize', act: resize },
  {
    name: 'managed-save',
    fault: 'managedsave',
    leaves: 'shut off',
    act: async world => {
      await virsh(world, 'managedsave', 'mydomain')
      return undefined
    },
  },
  {
    name: 'redefine',
    fault: 'define with the old XML',
    act: async world => {
      await virsh(world, 'define', DEFINITION)
      return undefined
    },
  },
  {
    name: 'remove-overlay',
    fault: 'the overlays are removed by hand',
    act: async ({ lab }) => {
      await lab.source(['sh', '-c', `rm ${IMAGES}/*.nbd-clone.*`])
      return undefined
    },
  },
  { name: 'stack', fault: 'a snapshot of the admin on ours', act: stackSnapshot, sample: true },
  {
    name: 'undefine',
    fault: 'undefine, while it runs',
    act: async world => {
      await virsh(world, 'undefine', 'mydomain')
      return { afterwards: () => virsh(world, 'define', DEFINITION) }
    },
  },
  {
    name: 'gone',
    fault: 'destroy and undefine: libvirt does not know the domain',
    leaves: 'shut off',
    operator: true,
    act: removeDomain,
  },
]

export const ADMIN: readonly Scenario[] = DEEDS.map(({ name, act, ...rest }) => ({
  ...rest,
  name: `admin-${name}`,
  step: 'frozen, copying',
  pull: true,
  run: (world: World) => whileCopying(world, act),
}))
