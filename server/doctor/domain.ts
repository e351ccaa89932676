// What one domain must be for a pull: known, persistent, free of saved state, and with a guest agent where one is asked for.

import { toFailure, type Failure } from '../../shared/failures.ts'
import { reasonOf } from '../../shared/host/run.ts'
import type { DomainSettings } from '../config/schema.ts'
import { readDomainXml, type DomainXml } from '../libvirt/domain-xml.ts'
import type { Virsh } from '../libvirt/virsh.ts'
import type { Journal } from '../session/journal.ts'
import { readBothXml } from '../session/preflight.ts'
import { lookAtDisks } from './disks.ts'
import { fail, pass, skip, warn, type Check, type Outcome } from './finding.ts'
import { hasWorkingHook, LIBVIRT_MS, NO_LIBVIRT, type LibvirtFacts } from './libvirt.ts'

export interface DomainInfo {
  readonly state: string
  readonly persistent: boolean
  readonly autostart: boolean
  readonly managedSave: boolean
}

export interface DomainFacts {
  readonly domain: string
  readonly settings: DomainSettings
  readonly virsh: Virsh
  readonly libvirt: LibvirtFacts
  readonly journal: Journal | undefined
  /** Undefined when libvirt does not answer; a failure when it does not know the domain. */
  readonly known:
    | { readonly info: DomainInfo; readonly live: DomainXml; readonly inactive: DomainXml }
    | Failure
    | undefined
}

/** The words of `virsh dominfo`. */
export function readDomainInfo(text: string): DomainInfo {
  const word = (key: string): string =>
    new RegExp(`^${key}:\\s*(.*?)\\s*$`, 'm').exec(text)?.[1] ?? ''
  return {
    state: word('State'),
    persistent: word('Persistent') === 'yes',
    autostart: word('Autostart') === 'enable',
    managedSave: word('Managed save') === 'yes',
  }
}

export async function readDomainFacts(facts: Omit<DomainFacts, 'known'>): Promise<DomainFacts> {
  const { domain, virsh, libvirt } = facts
  if (libvirt.unreachable !== undefined) return { ...facts, known: undefined }
  try {
    const { inactiveXml, liveXml } = await readBothXml(virsh, domain)
    const info = readDomainInfo(await virsh.text(['dominfo', '--domain', domain]))
    const live = readDomainXml(liveXml)
    return { ...facts, known: { info, live, inactive: readDomainXml(inactiveXml) } }
  } catch (error) {
    return { ...facts, known: toFailure(error) }
  }
}

export type Known = Exclude<DomainFacts['known'], Failure | undefined>

/** A check of a domain that libvirt knows; of another one it is skipped. */
function known(
  look: (facts: DomainFacts, known: Known) => ReturnType<Check<DomainFacts>['look']>,
): Check<DomainFacts>['look'] {
  return facts => {
    if (facts.known === undefined) return skip(NO_LIBVIRT)
    if (facts.known instanceof Error) return skip('libvirt does not know the domain')
    return look(facts, facts.known)
  }
}

function judgeKnown({ known: found, domain }: DomainFacts): Outcome {
  if (found === undefined) return skip(NO_LIBVIRT)
  if (found instanceof Error) return fail(found.message, found.hint, found.code)
  if (!found.info.persistent)
    return fail(
      'transient: its definition would be lost with an overlay',
      `virsh dumpxml ${domain} > ${domain}.xml; virsh define ${domain}.xml`,
    )
  if (found.info.managedSave)
    return fail(
      'it has a managed save image, which holds the disks as they were',
      `virsh start ${domain}, or: virsh managedsave-remove ${domain}`,
    )
  return pass('known to libvirt, persistent, no managed save')
}

export function judgeState(state: string, domain: string, hook: boolean): Outcome {
  if (state === 'running') return pass('running')
  if (state === 'paused')
    return warn(
      'paused: its clone will be crash-consistent',
      `why: virsh domstate --reason ${domain}`,
    )
  if (state === 'shut off' || state === 'crashed') {
    const found = `${state}: its disks can be read only under guard of the start hook`
    return hook
      ? pass(`${found}, which is there`)
      : warn(found, `install it (see "start hook"), or: virsh start ${domain}`)
  }
  return warn(`${state}: it is not pulled in this state`, `virsh domstate --reason ${domain}`)
}

/** @param reason why the agent did not answer; undefined when it said `status` */
export function judgeAgent(
  quiesce: DomainSettings['quiesce'],
  answer: { readonly status: string } | { readonly reason: string },
  domain: string,
): Outcome {
  if ('status' in answer)
    return answer.status === 'frozen'
      ? fail(
          'the guest agent says that the file systems are frozen',
          `unless a session begins right now: virsh domfsthaw ${domain}`,
          'NEEDS_OPERATOR',
        )
      : pass('the guest agent answers')
  const remedy = `install and start qemu-guest-agent in the guest, with its channel in the domain's XML`
  if (quiesce === 'required')
    return fail(`no guest agent, and quiesce is required: ${answer.reason}`, remedy)
  return warn(
    `no guest agent, so clones are crash-consistent: ${answer.reason}`,
    `${remedy}; or set quiesce: off`,
  )
}

async function lookAtAgent(facts: DomainFacts, { info }: Known): Promise<Outcome> {
  const { domain, virsh, settings } = facts
  if (settings.quiesce === 'off') return pass('not asked: quiesce is off')
  if (info.state !== 'running') return skip(`the domain is ${info.state}`)
  const command = ['qemu-agent-command', domain, '{"execute":"guest-fsfreeze-status"}']
  const result = await virsh.run([...command, '--timeout', '5'], LIBVIRT_MS)
  const status = /"return":"(\w+)"/.exec(result.stdout)?.[1]
  const answer =
    result.exitCode === 0 && status !== undefined ? { status } : { reason: reasonOf(result) }
  return judgeAgent(settings.quiesce, answer, domain)
}

export const DOMAIN_CHECKS: readonly Check<DomainFacts>[] = [
  { check: 'domain', look: judgeKnown },
  {
    check: 'state',
    look: known((facts, { info }) =>
      judgeState(info.state, facts.domain, hasWorkingHook(facts.libvirt)),
    ),
  },
  { check: 'disks', look: known(lookAtDisks) },
  { check: 'guest agent', look: known(lookAtAgent) },
]
