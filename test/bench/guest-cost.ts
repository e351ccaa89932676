// What a pull costs the guest: how long it stands frozen, how long it writes to an overlay, how long the merge takes, and how
// long its synchronous writes take meanwhile, by QEMU's own count, against an idle source.

import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Failure } from '../../shared/failures.ts'
import { startGuest } from '../lab/guest.ts'
import { DOMAIN } from '../lab/names.ts'
import { waitFor } from '../lab/processes.ts'
import { diskFile, pullInLab, type LabWorld } from './lab-world.ts'
import { runGroup } from './measure.ts'
import { median, note as progress } from './report.ts'
import { makeImage } from './world.ts'

const GIB = 1024 ** 3
const IDLE_MS = 6_000
/** The guest's writer: 4 KiB, each on the disk before the next. */
const WRITER =
  'while :; do dd if=/dev/zero of=/data/a/sync bs=4k count=64 oflag=dsync conv=notrunc; done >/dev/null 2>&1 &'

/** Of disk vda since it was started. */
interface Stats {
  readonly at: number
  readonly wr_operations: number
  readonly wr_total_time_ns: number
  readonly flush_operations: number
  readonly flush_total_time_ns: number
}
type Quantity = 'writes a second' | 'ms a write' | 'ms a flush'
interface Settled {
  readonly mergeMs: number
  readonly overlayBytes: number
}

/** The lab's guest, writing, with a third disk of 1 GiB of data so that a pull takes its time. @returns lines of a report */
export async function guestCost(
  world: LabWorld,
  rounds: number,
  signal: AbortSignal,
): Promise<string[]> {
  const { lab, serve, folder } = world
  const content = path.join(folder, 'content-guest')
  await makeImage(content, { size: GIB, data: GIB, every: GIB }, signal)
  const third = diskFile(DOMAIN, 'vdc', 'raw')
  await runGroup(['cp', content, await lab.path('source', third)], signal)
  await startGuest()
  const attach = ['attach-disk', DOMAIN, third, 'vdc', '--driver', 'qemu', '--subdriver', 'raw']
  await lab.source(['virsh', '-q', ...attach, '--targetbus', 'virtio', '--persistent'])
  await lab.guest(['sh', '-c', WRITER])

  const values = new Map<string, number[]>()
  const note = (what: string, value: number): void => {
    values.set(what, [...(values.get(what) ?? []), value])
  }
  const noteLatency = (when: string, before: Stats, after: Stats): void => {
    for (const [what, value] of Object.entries(between(before, after)))
      note(`${what}, ${when}`, value)
  }
  const row = pullInLab('guest-cost', '', world, [DOMAIN])
  for (let round = 0; round < rounds; round++) {
    await row.clear()
    await runGroup(['sync'], signal)
    const idle = await readStats(world)
    await sleep(IDLE_MS, undefined, { signal })
    const start = await readStats(world)
    noteLatency('idle', idle, start)
    const merged = serve.count('merged, on its bases')
    const { seconds } = await row.run(signal)
    note('s the whole pull', seconds)
    progress(`guest-cost ${seconds.toFixed(2)} s`)
    await waitFor('the merge', 60, () => serve.count('merged, on its bases') > merged)
    noteLatency('during a pull', start, await readStats(world))

    const frozen = serve.log().findLast(({ msg }) => msg === 'frozen')
    const over = serve.log().findLast(({ msg }) => msg === 'merged, on its bases')
    const disks = over?.['disks'] as readonly Settled[]
    note('ms frozen by the agent', Number(frozen?.['freezeMs']))
    note('ms the snapshot in it', Number(frozen?.['snapshotMs']))
    note('s on overlays', (Number(over?.['time']) - Number(frozen?.['time'])) / 1000)
    note('s merging, all disks', disks.reduce((sum, { mergeMs }) => sum + mergeMs, 0) / 1000)
    note('MiB merged', disks.reduce((sum, { overlayBytes }) => sum + overlayBytes, 0) / 1024 ** 2)
  }
  await row.clear()
  await lab.source(['virsh', 'destroy', DOMAIN])
  return [
    'guest-cost: a guest in software emulation that writes 4 KiB at a time, each on its disk before the next; a first pull of 3',
    'disks with 1 GiB of data. Writes and flushes as QEMU counts them for the disk, from start of the pull to the end of the merge.',
    '',
    ...[...values].map(([what, all]) => {
      const spread = `${Math.min(...all).toFixed(2)} to ${Math.max(...all).toFixed(2)}`
      return `${what.padEnd(36)}${median(all).toFixed(2).padStart(9)}   ${spread}`
    }),
  ]
}

function between(before: Stats, after: Stats): Readonly<Record<Quantity, number>> {
  const writes = after.wr_operations - before.wr_operations
  const flushes = after.flush_operations - before.flush_operations
  return {
    'writes a second': (writes * 1000) / (after.at - before.at),
    'ms a write': (after.wr_total_time_ns - before.wr_total_time_ns) / writes / 1e6,
    'ms a flush': (after.flush_total_time_ns - before.flush_total_time_ns) / flushes / 1e6,
  }
}

async function readStats({ lab }: LabWorld): Promise<Stats> {
  const command = ['qemu-monitor-command', DOMAIN, '{"execute":"query-blockstats"}']
  const { stdout } = await lab.source(['virsh', ...command])
  const answer = JSON.parse(stdout) as {
    return: readonly { qdev?: string; stats: Omit<Stats, 'at'> }[]
  }
  const disk = answer.return.find(({ qdev }) => qdev?.includes('virtio-disk0'))
  if (!disk) throw new Failure('INTERNAL', `QEMU counts nothing for vda: ${stdout}`)
  return { ...disk.stats, at: Date.now() }
}
