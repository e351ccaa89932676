// The merge of one disk by QEMU's monitor alone: what libvirt does, for when libvirt does not know of the overlay or of the domain.

import { setTimeout as delay } from 'node:timers/promises'
import { Failure } from '../../shared/failures.ts'
import type { DiskFormat } from '../../shared/gate.ts'
import { readBlockJobs, readChains, readNodes, type BlockJob, type Node } from '../libvirt/graph.ts'
import { nothing, type Monitor } from '../libvirt/monitor.ts'
import type { SessionDiskRecord } from './journal.ts'

const POLL_MS = 100
const MIB = 1024 * 1024

function ownJob(target: string): string {
  return `nbd-clone-${target}`
}

/** Whether a job is one that we started in QEMU, of which libvirt knows nothing. */
export function isOwnJob(job: BlockJob): boolean {
  return job.device.startsWith('nbd-clone-')
}

/** The job that merges a disk, libvirt's or ours. */
export async function findJob(monitor: Monitor, target: string): Promise<BlockJob | undefined> {
  const jobs = await readBlockJobs(monitor)
  return jobs.find(
    job => job.device.startsWith(`commit-${target}-`) || job.device === ownJob(target),
  )
}

/** The node of a base: that of its format, or of its file alone, as newer libvirt has it for raw. */
function baseNode(nodes: readonly Node[], base: string, format: DiskFormat): Node | undefined {
  const own = nodes.filter(node => node.file === base)
  const file =
    format === 'raw' ? own.find(node => /^(file|host_device)$/.test(node.driver)) : undefined
  return own.find(node => node.driver === format) ?? file
}

/**
 * Starts a commit of the overlay that takes the guest's writes into its base (QMP block-commit).
 * @param bandwidth MiB/s, 0 for no limit
 * @throws Failure MERGE_FAILED when something lies on the overlay, SOURCE_REFUSED with QEMU's sentence
 */
export async function startInQemu(
  monitor: Monitor,
  domain: string,
  disk: SessionDiskRecord,
  bandwidth: number,
): Promise<void> {
  const nodes = await readNodes(monitor)
  const top = nodes.find(node => node.file === disk.overlay && node.driver === 'qcow2')
  const base = baseNode(nodes, disk.base, disk.format)
  const active = (await readChains(monitor)).some(chain => chain[0] === disk.overlay)
  if (!active || !top || !base)
    throw new Failure(
      'MERGE_FAILED',
      `disk ${disk.target} of ${domain}: QEMU has ${disk.overlay} in a place that libvirt does not know`,
    )
  await monitor.execute(
    {
      execute: 'block-commit',
      arguments: {
        'job-id': ownJob(disk.target),
        device: top.name,
        'top-node': top.name,
        'base-node': base.name,
        ...(bandwidth > 0 ? { speed: bandwidth * MIB } : {}),
      },
    },
    nothing,
  )
}

/** Pivots: from here on the guest writes to the base (QMP job-complete). */
export async function completeInQemu(monitor: Monitor, job: BlockJob): Promise<void> {
  await monitor.execute({ execute: 'job-complete', arguments: { id: job.device } }, nothing)
}

/** Merges one disk to its end. @throws Failure MERGE_FAILED, SOURCE_REFUSED */
export async function mergeInQemu(
  monitor: Monitor,
  domain: string,
  disk: SessionDiskRecord,
  beforePivot: () => Promise<void>,
): Promise<void> {
  if (!(await findJob(monitor, disk.target))) await startInQemu(monitor, domain, disk, 0)
  let completed = false
  for (;;) {
    const job = await findJob(monitor, disk.target)
    if (!job) break
    if (job.ready && !completed) {
      await beforePivot()
      await completeInQemu(monitor, job)
      completed = true
    }
    await delay(POLL_MS)
  }
  if ((await readChains(monitor)).some(chain => chain.includes(disk.overlay)))
    throw new Failure('MERGE_FAILED', `disk ${disk.target} of ${domain}: not merged in QEMU`)
}
