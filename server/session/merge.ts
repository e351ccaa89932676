// One overlay merged into its base: start or adopt the block job, wait until QEMU says ready, pivot, look again.

import { setTimeout as delay } from 'node:timers/promises'
import { Failure } from '../../shared/failures.ts'
import { reasonOf } from '../../shared/host/run.ts'
import { readBlockJobs, readChains, type BlockJob } from '../libvirt/graph.ts'
import type { Virsh } from '../libvirt/virsh.ts'
import type { SessionDiskRecord } from './journal.ts'

const POLL_MS = 100
/** "Not ready for pivot yet" is a known race and passes; a refusal that stays is a failure. */
const PIVOT_PATIENCE_MS = 60_000
const POLL_SLOW_MS = 1000
/** A job may vanish without having merged (someone aborted it); it is started again so often. */
const ATTEMPTS = 3

function findJob(jobs: readonly BlockJob[], target: string): BlockJob | undefined {
  return jobs.find(job => job.device.startsWith(`commit-${target}-`))
}

async function chainOf(
  virsh: Virsh,
  domain: string,
  overlay: string,
): Promise<readonly string[] | undefined> {
  return (await readChains(virsh, domain)).find(chain => chain.includes(overlay))
}

/** Starts the merge with explicit base and top, never into anything deeper. */
async function startMerge(
  virsh: Virsh,
  domain: string,
  disk: SessionDiskRecord,
  active: boolean,
): Promise<void> {
  const result = await virsh.run([
    'blockcommit',
    domain,
    disk.target,
    '--base',
    disk.base,
    '--top',
    disk.overlay,
    ...(active ? ['--active'] : []),
  ])
  if (result.exitCode === 0) return
  if (findJob(await readBlockJobs(virsh, domain), disk.target)) return
  throw new Failure(
    'MERGE_FAILED',
    `disk ${disk.target} of ${domain}: merge did not start: ${reasonOf(result)}`,
  )
}

/**
 * Merges the overlay of one disk of a running domain, however far that had come already. Done when QEMU's graph has
 * lost the overlay.
 * @throws Failure MERGE_FAILED
 */
export async function mergeDisk(
  virsh: Virsh,
  domain: string,
  disk: SessionDiskRecord,
  beforePivot: () => Promise<void>,
): Promise<void> {
  let reason = 'its block job ended without merging'
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    const chain = await chainOf(virsh, domain, disk.overlay)
    if (!chain) return
    const active = chain[0] === disk.overlay
    if (!findJob(await readBlockJobs(virsh, domain), disk.target))
      await startMerge(virsh, domain, disk, active)
    reason = (await driveJob(virsh, domain, disk, beforePivot)) ?? reason
    for (let look = 0; look < 20; look++) {
      if (!(await chainOf(virsh, domain, disk.overlay))) return
      if (findJob(await readBlockJobs(virsh, domain), disk.target)) break
      await delay(POLL_MS)
    }
  }
  throw new Failure('MERGE_FAILED', `disk ${disk.target} of ${domain}: not merged: ${reason}`, {
    remedy: `on the source run: clone-server recover ${domain}`,
  })
}

/** Follows the job to its end; returns libvirt's sentence when the pivot was refused. */
async function driveJob(
  virsh: Virsh,
  domain: string,
  disk: SessionDiskRecord,
  beforePivot: () => Promise<void>,
): Promise<string | undefined> {
  let pivotSince: number | undefined
  let refused: string | undefined
  const started = Date.now()
  for (;;) {
    const job = findJob(await readBlockJobs(virsh, domain), disk.target)
    if (!job) return refused
    if (job.ready && job.type === 'commit') {
      if (pivotSince === undefined) await beforePivot()
      pivotSince ??= Date.now()
      const result = await virsh.run(['blockjob', domain, disk.target, '--pivot'])
      if (result.exitCode !== 0) refused = reasonOf(result)
      if (refused !== undefined && Date.now() - pivotSince > PIVOT_PATIENCE_MS)
        throw new Failure(
          'MERGE_FAILED',
          `disk ${disk.target} of ${domain}: the pivot is refused: ${refused}`,
        )
    }
    await delay(Date.now() - started < 10_000 ? POLL_MS : POLL_SLOW_MS)
  }
}
