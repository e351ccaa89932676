// What libvirt believes of a domain: a witness, not the truth.

import { setTimeout as delay } from 'node:timers/promises'
import { Failure } from '../../shared/failures.ts'
import { reasonOf } from '../../shared/host/run.ts'
import type { Virsh } from './virsh.ts'

const LIBVIRT_PATIENCE_MS = 30_000
const RETRY_MS = 500

export interface LibvirtView {
  readonly active: boolean
  /** libvirt's words, e.g. `shut off (crashed)`; `unknown to libvirt` when it has no such domain. */
  readonly state: string
}

/** What libvirt says of a domain; waits for a libvirtd that is being restarted. @throws Failure MERGE_FAILED */
export async function libvirtView(virsh: Virsh, domain: string): Promise<LibvirtView> {
  const end = Date.now() + LIBVIRT_PATIENCE_MS
  for (;;) {
    const state = await virsh.run(['domstate', '--reason', '--domain', domain])
    const id = await virsh.run(['domid', '--domain', domain])
    if (state.exitCode === 0 && id.exitCode === 0)
      return { active: /^\d+$/.test(id.stdout.trim()), state: state.stdout.trim() }
    const reason = reasonOf(state.exitCode === 0 ? id : state)
    if (/failed to get domain/.test(reason)) return { active: false, state: 'unknown to libvirt' }
    if (Date.now() > end)
      throw new Failure('MERGE_FAILED', `cannot ask libvirt about ${domain}: ${reason}`, {
        remedy: `start libvirtd, then run: clone-server recover ${domain}`,
      })
    await delay(RETRY_MS)
  }
}
