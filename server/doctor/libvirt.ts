// libvirt as doctor sees it: reachable, how old, how it confines QEMU, and its start hook.

import { readFile } from 'node:fs/promises'
import type { Element } from '@xmldom/xmldom'
import { reasonOf } from '../../shared/host/run.ts'
import { parseXml } from '../libvirt/domain-xml.ts'
import { START_HOOK, startHookFault, type HookFault } from '../libvirt/start-hook.ts'
import type { Virsh } from '../libvirt/virsh.ts'
import { fail, pass, skip, warn, type Check, type Outcome } from './finding.ts'
import { isOlder, parseVersion } from './nbd-server.ts'

const APPARMOR = '/sys/module/apparmor/parameters/enabled'
/** virt-aa-helper denies writing to a base until here, and a merge writes to it. */
const APPARMOR_FIXED = [12, 1, 0]
export const LIBVIRT_MS = 15_000

export interface LibvirtFacts {
  /** Why it cannot be asked; then nothing else is known. */
  readonly unreachable?: string
  readonly daemon?: string
  readonly qemu?: string
  /** libvirt's security drivers: `apparmor`, `selinux`, `dac`, `none`. */
  readonly models: readonly string[]
  /** Whom QEMU runs as. */
  readonly qemuUser?: { readonly uid: number; readonly gid: number }
  /** Whether the kernel of this host has AppArmor switched on. */
  readonly apparmor: boolean
  /** Why the start of a domain that is off would not be told; undefined when it is sure to be. */
  readonly hookFault?: HookFault
}

function elements(parent: Element | undefined, tag: string): Element[] {
  return parent ? [...parent.getElementsByTagName(tag)] : []
}

/** What `virsh capabilities` says of confinement. */
export function readSecurity(xml: string): Pick<LibvirtFacts, 'models' | 'qemuUser'> {
  const models = elements(parseXml(xml).documentElement ?? undefined, 'secmodel')
  const label = models
    .flatMap(model => elements(model, 'baselabel'))
    .map(one => /^\+(\d+):\+(\d+)$/.exec(one.textContent ?? ''))
    .find(match => match !== null)
  return {
    models: models.flatMap(model => elements(model, 'model').map(one => one.textContent ?? '')),
    ...(label ? { qemuUser: { uid: Number(label[1]), gid: Number(label[2]) } } : {}),
  }
}

/** @param serveSocket which the start hook must name */
export async function readLibvirtFacts(virsh: Virsh, serveSocket: string): Promise<LibvirtFacts> {
  const apparmor = (await readFile(APPARMOR, 'utf8').catch(() => '')).trim() === 'Y'
  const version = await virsh.run(['version', '--daemon'], LIBVIRT_MS)
  if (version.exitCode !== 0) return { unreachable: reasonOf(version), models: [], apparmor }
  const field = (pattern: RegExp): Record<string, string> =>
    pattern.exec(version.stdout)?.groups ?? {}
  const { daemon = '' } = field(/^Running against daemon: (?<daemon>\S+)/m)
  const hookFault = await startHookFault(serveSocket, virsh.uri, daemon)
  const capabilities = await virsh.run(['capabilities'], LIBVIRT_MS)
  return {
    ...field(/^Running against daemon: (?<daemon>\S+)/m),
    ...field(/^Running hypervisor: QEMU (?<qemu>\S+)/m),
    ...(capabilities.exitCode === 0 ? readSecurity(capabilities.stdout) : { models: [] }),
    apparmor,
    ...(hookFault ? { hookFault } : {}),
  }
}

export const NO_LIBVIRT = 'libvirt does not answer'

function judgeReachable({ unreachable, daemon, qemu }: LibvirtFacts): Outcome {
  if (unreachable !== undefined)
    return fail(
      `libvirt does not answer: ${unreachable}`,
      'systemctl status libvirtd (or virtqemud); is libvirtUri right?',
    )
  return pass(`libvirt ${daemon ?? 'of unknown version'}, QEMU ${qemu ?? 'of unknown version'}`)
}

/** Merging writes to the base, which AppArmor's profile may deny. */
export function judgeConfinement(facts: LibvirtFacts): Outcome {
  if (facts.unreachable !== undefined) return skip(NO_LIBVIRT)
  const models = facts.models.filter(model => model !== 'none')
  const drivers = `security drivers: ${models.join(', ') || 'none'}`
  if (!models.includes('apparmor'))
    return pass(
      facts.apparmor ? `${drivers}; AppArmor is on, but libvirt does not use it` : drivers,
    )
  const daemon = parseVersion(facts.daemon ?? '')
  if (daemon && !isOlder(daemon, APPARMOR_FIXED)) return pass(`${drivers}; libvirt is new enough`)
  return warn(
    `${drivers}; libvirt ${facts.daemon ?? '?'} may deny QEMU to write to a base, and then a merge fails with "Permission denied"`,
    'try it once while you watch: clone-server session open DOMAIN, then session close; libvirt 12.1.0 is without this',
  )
}

/** The script that ends a session before a domain that was off is started. */
export function judgeHook({ unreachable, hookFault }: LibvirtFacts): Outcome {
  if (unreachable !== undefined) return skip(NO_LIBVIRT)
  if (!hookFault)
    return pass(`${START_HOOK}: starts are told, so domains that are off can be pulled`)
  return warn(
    `domains that are off cannot be pulled: ${hookFault.reason}`,
    hookFault.remedy.join('\n') || 'only needed for domains that are off',
  )
}

/** Whether a domain that is off can be pulled under guard. */
export function hasWorkingHook(facts: LibvirtFacts): boolean {
  return judgeHook(facts).verdict === 'pass'
}

export const LIBVIRT_CHECKS: readonly Check<LibvirtFacts>[] = [
  { check: 'libvirt', look: judgeReachable },
  { check: 'confinement', look: judgeConfinement },
  { check: 'start hook', look: judgeHook },
]
