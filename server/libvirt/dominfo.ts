// What libvirt says of a domain in one answer: whether it is active, its state, whether it is kept, whether it is saved.

import { reasonOf } from '../../shared/host/run.ts'
import { Failure } from '../../shared/failures.ts'
import type { Virsh } from './virsh.ts'

export interface Dominfo {
  /** It runs, or is being started: libvirt gives it an id before it says anything else. */
  readonly active: boolean
  /** virsh's words: `running`, `paused`, `shut off`, `crashed`, `pmsuspended`, … */
  readonly state: string
  readonly persistent: boolean
  readonly managedSave: boolean
}

/** The failure of a virsh command that was asked about a domain: libvirt does not know it, or did not answer. */
export function unknownDomain(domain: string, reason: string): Failure {
  return /failed to get domain/.test(reason)
    ? new Failure('SOURCE_REFUSED', `libvirt on the source does not know domain ${domain}`, {
        remedy: 'on the source run: virsh list --all, and correct domains: in source.yaml',
      })
    : new Failure(
        'SOURCE_REFUSED',
        `libvirt on the source did not answer for domain ${domain}: ${reason}`,
        { remedy: 'on the source: is libvirtd running?' },
      )
}

/** @throws Failure SOURCE_REFUSED when libvirt does not know the domain or does not answer */
export async function readDominfo(virsh: Virsh, domain: string): Promise<Dominfo> {
  const result = await virsh.run(['dominfo', '--domain', domain])
  if (result.exitCode !== 0) throw unknownDomain(domain, reasonOf(result))
  const field = (name: string): string =>
    new RegExp(`^${name}:\\s*(.*?)\\s*$`, 'm').exec(result.stdout)?.[1] ?? ''
  return {
    active: field('Id') !== '-',
    state: field('State'),
    persistent: field('Persistent') === 'yes',
    managedSave: field('Managed save') === 'yes',
  }
}
