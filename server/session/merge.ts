// One overlay merged into its base while the domain runs: start or adopt the block job, wait until QEMU says ready, pivot,
// look again. Through libvirt; through QEMU's monitor alone when libvirt does not know of the overlay.

import { setTimeout as delay } from 'node:timers/promises'
import { Failure, toFailure } from '../../shared/failures.ts'
import { reasonOf } from '../../shared/host/run.ts'
import { dropNodes, readChains, type BlockJob } from '../libvirt/graph.ts'
import type { Virsh } from '../libvirt/virsh.ts'
import type { SessionDiskRecord } from './journal.ts'
import type { Ladder } from './ladder.ts'
import { completeInQemu, findJob, isOwnJob, startInQemu } from './merge-in-qemu.ts'

const POLL_MS = 100
/** "Not ready for pivot yet" is a known race and passes; a refusal that stays is a failure. */
const PIVOT_PATIENCE_MS = 60_000
const POLL_SLOW_MS = 1000
/** A job may vanish without having merged (someone aborted it); it is started again so often. */
const ATTEMPTS = 3

/** What a merge needs to know and to say. */
export interface Merge {
  readonly virsh: Virsh
  readonly domain: string
  readonly disk: SessionDiskRecord
  /** Whether libvirt knows of the overlay; if not, only QEMU itself can be asked. */
  readonly known: boolean
  /** MiB/s, 0 for no limit. */
  readonly bandwidth: number
  readonly ladder: Ladder
  readonly beforePivot: () => Promise<void>
}

function jobOf({ virsh, domain, disk }: Merge): Promise<BlockJob | undefined> {
  return findJob(virsh.monitor(domain), disk.target)
}

async function chainOf({ virsh, domain, disk }: Merge): Promise<readonly string[] | undefined> {
  return (await readChains(virsh.monitor(domain))).find(chain => chain.includes(disk.overlay))
}

/** Starts the merge with explicit base and top, never into anything deeper. */
async function startMerge(merge: Merge, active: boolean): Promise<void> {
  const { virsh, domain, disk, bandwidth } = merge
  if (!merge.known) {
    await startInQemu(virsh.monitor(domain), domain, disk, bandwidth)
    return
  }
  const result = await virsh.run([
    ...['blockcommit', domain, disk.target, '--base', disk.base, '--top', disk.overlay],
    ...(active ? ['--active'] : []),
    ...(bandwidth > 0 ? ['--bandwidth', String(bandwidth)] : []),
  ])
  if (result.exitCode === 0) return
  if (await jobOf(merge)) return
  throw new Failure(
    'MERGE_FAILED',
    `disk ${disk.target} of ${domain}: merge did not start: ${reasonOf(result)}`,
    { remedy: remedyOf(reasonOf(result), merge) },
  )
}

/** libvirt before 12.1 denies QEMU the write to a base under AppArmor, and deny outweighs every allow. */
function remedyOf(reason: string, { domain, disk }: Merge): string | undefined {
  if (!/permission denied/i.test(reason)) return undefined
  return [
    `QEMU may not write to ${disk.base}: with AppArmor and libvirt before 12.1, shut the guest down,`,
    `then clone-server recover ${domain} merges without QEMU`,
  ].join('\n        ')
}

/**
 * Merges the overlay of one disk of a running domain, however far that had come already. Done when QEMU's graph has
 * lost the overlay.
 * @throws Failure MERGE_FAILED, or SOURCE_REFUSED when libvirt does not answer
 */
export async function mergeDisk(merge: Merge): Promise<void> {
  const { virsh, domain, disk } = merge
  let reason = 'its block job ended without merging'
  let [chain, job] = await Promise.all([chainOf(merge), jobOf(merge)])
  for (let attempt = 0; chain && attempt < ATTEMPTS; attempt++) {
    if (!job) await startMerge(merge, chain[0] === disk.overlay)
    reason = (await driveJob(merge)) ?? reason
    // QEMU may show the old chain for a moment, or libvirt start the job again.
    for (let look = 0; look < 20; look++) {
      chain = await chainOf(merge)
      job = chain && (await jobOf(merge))
      if (!chain || job) break
      await delay(POLL_MS)
    }
  }
  if (chain)
    throw new Failure('MERGE_FAILED', `disk ${disk.target} of ${domain}: not merged: ${reason}`, {
      remedy: `on the source run: clone-server recover ${domain}`,
    })
  if (!merge.known) await dropNodes(virsh.monitor(domain), disk.overlay)
}

/** Follows the job to its end; returns libvirt's sentence when the pivot was refused. */
async function driveJob(merge: Merge): Promise<string | undefined> {
  const { domain, disk, ladder } = merge
  let pivotSince: number | undefined
  let refused: string | undefined
  const started = Date.now()
  for (;;) {
    const job = await jobOf(merge)
    if (!job) return refused
    if (job.ready && job.type === 'commit') {
      if (pivotSince === undefined) await merge.beforePivot()
      pivotSince ??= Date.now()
      refused = (await pivot(merge, job)) ?? refused
      if (refused !== undefined && Date.now() - pivotSince > PIVOT_PATIENCE_MS)
        throw new Failure(
          'MERGE_FAILED',
          `disk ${disk.target} of ${domain}: the pivot is refused: ${refused}`,
        )
    } else await ladder.climb(Date.now() - started, job.device)
    await delay(Date.now() - started < 10_000 ? POLL_MS : POLL_SLOW_MS)
  }
}

/** Returns the sentence of a refusal. */
async function pivot({ virsh, domain, disk }: Merge, job: BlockJob): Promise<string | undefined> {
  if (!isOwnJob(job)) {
    const result = await virsh.run(['blockjob', domain, disk.target, '--pivot'])
    return result.exitCode === 0 ? undefined : reasonOf(result)
  }
  try {
    await completeInQemu(virsh.monitor(domain), job)
    return undefined
  } catch (error) {
    return toFailure(error).message
  }
}
