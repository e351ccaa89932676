// What is done about a merge that does not come to an end: a guest may write faster than its overlay is merged, and QEMU then
// never says ready. Rung by rung: alarm, no bandwidth limit any more, and, only if allowed, a short pause of the guest.

import { setTimeout as delay } from 'node:timers/promises'
import type { Log } from '../../shared/log.ts'
import { readBlockJobs, readRunState } from '../libvirt/graph.ts'
import { nothing } from '../libvirt/monitor.ts'
import type { Virsh } from '../libvirt/virsh.ts'

export interface MergePolicy {
  /** MiB/s, 0 for no limit. */
  readonly bandwidth: number
  /** A merge that takes longer is reported and gets all bandwidth; ms. */
  readonly alarm: number
  /** For so long the guest may be paused at a time to let the merge catch up; ms, 0 for never. */
  readonly pause: number
}

export interface Ladder {
  /** Called while the job is not ready. @param elapsedMs since the job was first seen */
  climb(elapsedMs: number, job: string): Promise<void>
}

/** What of the ladder must survive us: that there was an alarm, and that the guest is paused by us. */
export type RecordRung = (step: 'alarm' | 'suspend' | 'resume', reason?: string) => Promise<void>

export function createLadder(
  virsh: Virsh,
  log: Log,
  domain: string,
  target: string,
  policy: MergePolicy,
  record: RecordRung,
): Ladder {
  let alarmed = false
  let lifted = policy.bandwidth === 0
  let pauseAfter = policy.alarm * 2

  async function liftBandwidth(job: string): Promise<void> {
    lifted = true
    log.warn({ domain, target }, 'the merge takes long, its bandwidth limit is lifted')
    await virsh
      .monitor(domain)
      .execute({ execute: 'block-job-set-speed', arguments: { device: job, speed: 0 } }, nothing)
  }

  /** Pauses the guest until the job is ready, at most for the time that the policy allows. */
  async function pauseGuest(job: string): Promise<void> {
    // A guest that somebody else has paused lets the merge catch up by itself, and must not be resumed by us.
    if ((await readRunState(virsh.monitor(domain))) !== 'running') return
    await record('suspend', `paused for at most ${policy.pause} ms so that the merge catches up`)
    log.warn({ domain, target }, 'the merge does not end: the guest is paused for a moment')
    const monitor = virsh.monitor(domain)
    try {
      await monitor.execute({ execute: 'stop' }, nothing)
      const end = Date.now() + policy.pause
      while (Date.now() < end) {
        const now = (await readBlockJobs(monitor)).find(one => one.device === job)
        if (!now || now.ready) break
        await delay(50)
      }
    } finally {
      await monitor.execute({ execute: 'cont' }, nothing)
      await record('resume')
    }
  }

  return {
    async climb(elapsedMs, job) {
      if (elapsedMs < policy.alarm) return
      if (!alarmed) {
        alarmed = true
        const reason = `the merge of disk ${target} of ${domain} has taken ${Math.round(elapsedMs / 1000)} s and goes on`
        log.error({ domain, target, elapsedMs }, reason)
        await record('alarm', reason)
      }
      if (!lifted) await liftBandwidth(job)
      if (policy.pause > 0 && elapsedMs >= pauseAfter) {
        await pauseGuest(job)
        pauseAfter = elapsedMs + policy.alarm
      }
    },
  }
}
