// Everything that must hold before a snapshot is taken. A refusal names disk, reason and remedy.

import { access, constants, statfs } from 'node:fs/promises'
import { Failure } from '../../shared/failures.ts'
import { reasonOf } from '../../shared/host/run.ts'
import { formatSize, shareOf } from '../../shared/quantities.ts'
import { MAX_MESSAGE } from '../../shared/rpc.ts'
import type { DomainSettings } from '../config/schema.ts'
import { unknownDomain, type Dominfo } from '../libvirt/dominfo.ts'
import {
  exportability,
  readDomainXml,
  type DomainDisk,
  type DomainXml,
} from '../libvirt/domain-xml.ts'
import { readBlockJobs, readChains } from '../libvirt/graph.ts'
import type { Virsh } from '../libvirt/virsh.ts'
import { checkWhole, exportedSize, readNvram, refuse } from './images.ts'
import type { SessionDiskRecord } from './journal.ts'
import { roomNeeded } from './limits.ts'
import { checkOpened } from './opened.ts'

export interface Preflight {
  readonly uuid: string
  readonly inactiveXml: string
  readonly liveXml: string
  readonly live: DomainXml
  /** Disks that become part of the recovery point. */
  readonly disks: readonly SessionDiskRecord[]
  /** Targets that stay as they are. */
  readonly left: readonly string[]
  /** Contents of the UEFI variables file. */
  readonly nvram: Buffer | undefined
}

const OVERLAY_SUFFIX = '.nbd-clone.qcow2'
const TMPFS = [0x01021994, 0x858458f6]

/** Where a session's overlay lies; `.qcow2` keeps AppArmor's helper able to find its base. */
export function overlayPath(
  directory: string,
  domain: string,
  target: string,
  recoveryPoint: string,
): string {
  return `${directory}/${domain}.${target}.${recoveryPoint}${OVERLAY_SUFFIX}`
}

/**
 * The XML of a domain, which must be the one of that name: virsh takes digits for a running domain's id.
 * @throws Failure SOURCE_REFUSED when libvirt does not know it
 */
export async function readXml(
  virsh: Virsh,
  domain: string,
  flags: readonly string[],
): Promise<string> {
  const result = await virsh.run(['dumpxml', '--domain', domain, ...flags])
  if (result.exitCode !== 0) throw unknownDomain(domain, reasonOf(result))
  const xml = result.stdout
  const { name } = readDomainXml(xml)
  if (name !== domain)
    refuse(
      `libvirt takes ${domain} for the domain ${name}`,
      'rename the domain: its name is an id to virsh',
    )
  return xml
}

/** Both XMLs of a domain. @throws Failure SOURCE_REFUSED when libvirt does not know it */
export async function readBothXml(
  virsh: Virsh,
  domain: string,
): Promise<{ inactiveXml: string; liveXml: string }> {
  const [inactiveXml, liveXml] = await Promise.all([
    readXml(virsh, domain, ['--inactive']),
    readXml(virsh, domain, []),
  ])
  return { inactiveXml, liveXml }
}

/** What to do about a state in which a domain is neither snapshotted nor at rest. */
const STATE_REMEDIES: Readonly<Record<string, string>> = {
  crashed: 'virsh destroy DOMAIN, then start it or pull it as it is',
  pmsuspended: 'virsh dompmwakeup DOMAIN',
  'in shutdown': 'wait until it is off',
}

/** State, persistence, managed save and running jobs of an active domain. */
async function checkDomain(virsh: Virsh, domain: string, info: Dominfo): Promise<void> {
  if (info.state !== 'running' && info.state !== 'paused')
    throw new Failure(
      info.state === 'pmsuspended' ? 'SOURCE_OFF' : 'SOURCE_REFUSED',
      `domain ${domain} is ${info.state}: only a running, paused or shut-off domain can be pulled`,
      {
        remedy: `on the source: ${(STATE_REMEDIES[info.state] ?? 'virsh domstate --reason DOMAIN').replaceAll('DOMAIN', domain)}`,
      },
    )
  if (!info.persistent)
    refuse(
      `domain ${domain} is transient: its definition would be lost with an overlay`,
      `make it persistent: virsh dumpxml ${domain} | virsh define /dev/stdin`,
    )
  if (info.managedSave)
    refuse(`domain ${domain} has a managed save image`, `virsh managedsave-remove ${domain}`)
  const job = await virsh.text(['domjobinfo', '--domain', domain])
  if (!/^Job type:\s*None/m.test(job))
    refuse(`domain ${domain} is busy with a libvirt job`, `see: virsh domjobinfo ${domain}`)
}

/**
 * Which disks become part of the recovery point, and which stay as they are.
 * @param live what the domain has now: of one that is off, its definition. @throws Failure SOURCE_REFUSED, NEEDS_OPERATOR
 */
export function chooseDisks(
  domain: string,
  live: DomainXml,
  inactive: DomainXml,
  settings: DomainSettings,
  recoveryPoint: string,
): { disks: SessionDiskRecord[]; left: string[] } {
  const disks: SessionDiskRecord[] = []
  const left: string[] = []
  for (const target of Object.keys(settings.disks))
    if (![...live.disks, ...inactive.disks].some(disk => disk.target === target))
      refuse(
        `domain ${domain} has no disk ${target}, which source.yaml names`,
        'correct domains.*.disks in source.yaml',
      )
  for (const disk of live.disks) {
    const verdict = exportability(domain, disk, settings.disks[disk.target]?.exclude === true)
    if (verdict.kind === 'refuse')
      refuse(`disk ${disk.target} of ${domain}: ${verdict.reason}`, verdict.remedy)
    if (verdict.kind === 'leave') {
      left.push(disk.target)
      continue
    }
    checkDisk(domain, disk, inactive)
    disks.push({
      target: disk.target,
      format: verdict.format,
      base: verdict.base,
      baseType: disk.type === 'block' ? 'block' : 'file',
      overlay: overlayPath(settings.overlayDir, domain, disk.target, recoveryPoint),
    })
  }
  for (const disk of inactive.disks)
    if (
      !live.disks.some(other => other.target === disk.target) &&
      exportability(domain, disk, settings.disks[disk.target]?.exclude === true).kind !== 'leave'
    )
      refuse(
        `disk ${disk.target} of ${domain} is in its definition, but not in the running domain, so its clone would lack it`,
        `attach it (virsh attach-disk --live), remove it (virsh detach-disk --config), or exclude it in source.yaml`,
      )
  if (disks.length === 0) refuse(`domain ${domain} has no disk to export`)
  return { disks, left }
}

function checkDisk(domain: string, disk: DomainDisk, inactive: DomainXml): void {
  if (disk.source?.endsWith(OVERLAY_SUFFIX))
    throw new Failure(
      'NEEDS_OPERATOR',
      `disk ${disk.target} of ${domain} is on ${disk.source}, and no journal says why`,
      {
        remedy: `clone-server recover ${domain} --merge-overlays ${disk.target}, while the domain runs (virsh start --paused)`,
      },
    )
  const saved = inactive.disks.find(other => other.target === disk.target)
  if (saved?.source !== disk.source)
    refuse(
      `disk ${disk.target} of ${domain}: the running domain uses ${disk.source ?? 'nothing'}, its definition says ${saved?.source ?? 'nothing'}`,
      `make them equal (virsh attach-disk/detach-disk --config), or exclude the disk`,
    )
  if (disk.hasJob)
    refuse(
      `disk ${disk.target} of ${domain} has a block job`,
      `virsh blockjob ${domain} ${disk.target} --info`,
    )
}

/** QEMU must agree with the XML: each base is the only image of its chain, and nothing is being copied. */
async function checkGraph(
  virsh: Virsh,
  domain: string,
  disks: readonly SessionDiskRecord[],
): Promise<void> {
  const [chains, jobs] = await Promise.all([
    readChains(virsh.monitor(domain)),
    readBlockJobs(virsh.monitor(domain)),
  ])
  const [job] = jobs
  if (job)
    refuse(
      `domain ${domain} has a block job in QEMU: ${job.device}`,
      'wait for it, or end it with virsh blockjob',
    )
  for (const disk of disks) {
    const chain = chains.find(one => one.includes(disk.base))
    if (!chain)
      throw new Failure(
        'NEEDS_OPERATOR',
        `disk ${disk.target} of ${domain}: QEMU does not have ${disk.base} open, though libvirt says so`,
        {
          remedy: `compare: virsh domblklist ${domain}; virsh qemu-monitor-command ${domain} '{"execute":"query-block"}' --pretty`,
        },
      )
    if (chain.length > 1)
      refuse(
        `disk ${disk.target} of ${domain}: QEMU has a chain of ${chain.length} images, ${chain.join(' on ')}`,
        `if it is a left-over overlay: clone-server recover ${domain} --merge-overlays ${disk.target}`,
      )
  }
}

/** Room for the overlays: a share of the bases, above what stays free of their file system. */
async function checkSpace(settings: DomainSettings, bytes: number): Promise<void> {
  const directory = settings.overlayDir
  const found = await statfs(directory).catch((error: unknown) => {
    throw new Failure('SOURCE_REFUSED', `overlayDir ${directory} is not there`, {
      cause: error,
      remedy: `mkdir ${directory}`,
    })
  })
  if (TMPFS.includes(found.type))
    refuse(
      `overlayDir ${directory} is in memory: a reboot would lose what the guest wrote`,
      'choose a directory on disk',
    )
  const { max, reserve } = settings.overlay
  const usable = found.bavail * found.bsize - shareOf(reserve, found.blocks * found.bsize)
  const needed = roomNeeded(max, bytes)
  if (usable < needed)
    refuse(
      `overlayDir ${directory}: ${formatSize(Math.max(0, usable))} usable above the reserve (overlay.reserve), ${formatSize(needed)} needed`,
      'free space there, or set overlayDir to a larger file system',
    )
}

/** Each image can be read, and is a whole disk. */
export async function checkImages(
  domain: string,
  disks: readonly SessionDiskRecord[],
): Promise<void> {
  for (const disk of disks)
    await access(disk.base, constants.R_OK).catch((error: unknown) => {
      throw new Failure(
        'SOURCE_REFUSED',
        `disk ${disk.target} of ${domain}: cannot read ${disk.base}`,
        { cause: error },
      )
    })
  await Promise.all(disks.map(disk => checkWhole(domain, disk)))
}

/** What a standby is told of the domain must fit into one message. */
export function checkMessage(domain: string, xmls: readonly string[], nvram?: Buffer): void {
  const message = xmls.join('').length + (nvram?.length ?? 0) * (4 / 3)
  if (message > MAX_MESSAGE * 0.9)
    refuse(
      `the XML and UEFI variables of ${domain} are ${formatSize(Math.round(message))}, more than one gate message holds`,
    )
}

/** Checks everything and says what the session would do. @throws Failure SOURCE_REFUSED, SOURCE_OFF, NEEDS_OPERATOR */
export async function preflight(
  virsh: Virsh,
  settings: DomainSettings,
  domain: string,
  recoveryPoint: string,
  info: Dominfo,
): Promise<Preflight> {
  const [{ inactiveXml, liveXml }] = await Promise.all([
    readBothXml(virsh, domain),
    checkDomain(virsh, domain, info),
  ])
  const live = readDomainXml(liveXml)
  const inactive = readDomainXml(inactiveXml)
  const { disks, left } = chooseDisks(domain, live, inactive, settings, recoveryPoint)
  await checkGraph(virsh, domain, disks)
  await checkOpened(live.uuid, domain, disks)
  await checkImages(domain, disks)
  const sizes = await Promise.all(disks.map(exportedSize))
  await checkSpace(
    settings,
    sizes.reduce((sum, size) => sum + size, 0),
  )
  const nvram = live.nvram === undefined ? undefined : await readNvram(live.nvram)
  checkMessage(domain, [inactiveXml, liveXml], nvram)
  return { uuid: live.uuid, inactiveXml, liveXml, live, disks, left, nvram }
}
