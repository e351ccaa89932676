// The one function that says whether a fault did harm: data, bases, graph, files, journal, processes, guest.

import { guestWrites } from '../lab/world.ts'
import { setTimeout as delay } from 'node:timers/promises'
import { dataFaults } from './guest-data.ts'
import { processesOn, strayProcesses } from './processes.ts'
import { BASES, JOURNAL, type World } from './world.ts'

export type DomainState = 'running' | 'shut off'

/** Overlays are looked for in all places where a cell may put them. */
const OVERLAYS = `find /var/lib/libvirt/images /var/lib/small -name '*.nbd-clone.*' 2>/dev/null`
/** A dead-man may stay until its deadline has passed and its thaw is confirmed. */
const STRAY_SECONDS = 15

/** What the source looks like. */
export interface SourceLook {
  readonly state: string
  readonly live: string
  readonly inactive: string
  readonly overlays: readonly string[]
  /** Last step of the journal; empty when there is none. */
  readonly step: string
}

/** Asked in one go: it is polled. */
export async function lookAtSource({ lab }: World): Promise<SourceLook> {
  const commands = [
    'timeout 5 virsh -q domstate mydomain 2>&1',
    'timeout 5 virsh -q domblklist mydomain 2>&1',
    'timeout 5 virsh -q domblklist --inactive mydomain 2>&1',
    OVERLAYS,
    `tail -n 1 ${JOURNAL} 2>/dev/null || true`,
  ]
  const { stdout } = await lab.source(['sh', '-c', commands.join('; echo ==; ')])
  const [state = '', live = '', inactive = '', overlays = '', journal = ''] = stdout.split('==')
  return {
    state: state.trim(),
    live,
    inactive,
    overlays: overlays.split('\n').filter(line => line !== ''),
    step: /"step":"([^"]+)"/.exec(journal)?.[1] ?? '',
  }
}

/** What keeps the domain from being on its bases with its journal closed; nothing, when it is settled. */
export async function unsettled(world: World, wanted: DomainState): Promise<string[]> {
  const look = await lookAtSource(world)
  const wrong: string[] = []
  if (look.state !== wanted) wrong.push(`libvirt says ${look.state}, not ${wanted}`)
  for (const [kind, list] of [
    ['live', look.live],
    ['inactive', look.inactive],
  ] as const)
    for (const [target, base] of Object.entries(world.bases))
      if (!new RegExp(`^ *${target} +${base}$`, 'm').test(list))
        wrong.push(
          `${kind} XML: ${target} is not on its base: ${list.replaceAll(/\s+/g, ' ').trim()}`,
        )
  for (const name of look.overlays) wrong.push(`overlay left: ${name}`)
  if (look.step !== '' && look.step !== 'done') wrong.push(`journal open at ${look.step}`)
  return [...wrong, ...(await graphFaults(world, wanted))]
}

/** QEMU's own word, not libvirt's. */
async function graphFaults(world: World, wanted: DomainState): Promise<string[]> {
  const qemus = (await processesOn(world.lab, 'source')).filter(({ command }) =>
    command.startsWith('qemu-system'),
  )
  if (wanted === 'shut off') return qemus.length === 0 ? [] : ['QEMU runs, but should be off']
  if (qemus.length !== 1) return [`${qemus.length} QEMUs run`]
  using monitor = await world.monitor()
  const chains = await monitor.chains()
  const wrong = Object.entries(world.bases)
    .filter(([, top]) => {
      const below = world.stacked[top]
      const wanted = below === undefined ? [top] : [top, below]
      return !chains.some(chain => chain.join() === wanted.join())
    })
    .map(([target]) => `QEMU: ${target} is not on its base alone`)
  const readers = (await monitor.readers()).map(name => `QEMU still has ${name}`)
  const overlays = (await monitor.files()).filter(file => file.includes('.nbd-clone.'))
  return [...wrong, ...readers, ...new Set(overlays.map(file => `QEMU has ${file} open`))]
}

/** Everything else, of a domain that is settled. The guest is running afterwards. */
export async function harm(world: World, wanted: DomainState): Promise<string[]> {
  const wrong: string[] = []
  const collect = async (check: Promise<string[]>): Promise<void> => {
    wrong.push(...(await check.catch((error: unknown) => [String(error)])))
  }
  await collect(untilNoStrays(world))
  if (wanted === 'shut off') {
    await collect(recordFaults(world))
    await collect(world.startGuest().then(() => unsettled(world, 'running')))
  }
  await collect(guestFaults(world))
  await collect(liveRecordFaults(world))
  await collect(statusFaults(world))
  return wrong
}

async function untilNoStrays({ lab }: World): Promise<string[]> {
  const end = Date.now() + STRAY_SECONDS * 1000
  for (;;) {
    const strays = await strayProcesses(lab)
    if (strays.length === 0) return []
    if (Date.now() > end) return strays.map(each => `process left: ${each}`)
    await delay(200)
  }
}

async function guestFaults({ lab }: World): Promise<string[]> {
  const ask = '{"execute":"guest-fsfreeze-status"}'
  const { stdout } = await lab.source(['virsh', 'qemu-agent-command', 'mydomain', ask])
  if (!stdout.includes('thawed')) return [`the guest is frozen: ${stdout}`]
  await guestWrites(lab)
  return []
}

/** Holds the guest for a moment, so that its images do not change while they are read. */
async function liveRecordFaults(world: World): Promise<string[]> {
  const { lab } = world
  await world.note()
  await lab.source(['virsh', '-q', 'suspend', 'mydomain'])
  try {
    return await recordFaults(world)
  } finally {
    await lab.source(['virsh', '-q', 'resume', 'mydomain'])
  }
}

async function recordFaults({ lab, synced }: World): Promise<string[]> {
  const path = (target: string): Promise<string> => lab.path('source', BASES[target] ?? '')
  return dataFaults(
    { path: await path('vda'), format: 'raw' },
    { path: await path('vdb'), format: 'qcow2' },
    synced,
  )
}

async function statusFaults({ lab }: World): Promise<string[]> {
  const { stdout, exitCode, stderr } = await lab.source(['clone-server', 'status', '--json'], {
    reject: false,
    timeout: 30_000,
  })
  if (exitCode !== 0) return [`status exits ${exitCode}: ${stderr}`]
  return /"state": ?"idle"/.test(stdout) ? [] : [`status does not say idle: ${stdout}`]
}
