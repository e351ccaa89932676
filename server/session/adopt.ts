// Overlays that are not ours, merged because an operator says that they are left-overs: those of a script that died, or ours
// whose journal was lost. They get a journal, and are then settled like any other.

import { Failure } from '../../shared/failures.ts'
import { openersOf } from '../../shared/host/openers.ts'
import { newRecoveryPointId } from '../../shared/names.ts'
import { readDomainXml, type DomainDisk } from '../libvirt/domain-xml.ts'
import { readChains, readNodes, type Chain, type Node } from '../libvirt/graph.ts'
import { onBackingStore } from '../libvirt/on-base.ts'
import { findQemu, type QemuProcess } from '../libvirt/qemu-process.ts'
import type { Source } from '../source.ts'
import { refuse } from './images.ts'
import { recordStep, startJournal, type SessionDiskRecord } from './journal.ts'
import { liesOn } from './overlay.ts'
import { readBothXml } from './preflight.ts'
import { settle } from './settle.ts'

/**
 * Merges the one overlay of each of these disks of a running domain into what it lies on. Never deeper, and never into an image
 * that another domain or process uses: a disk with more layers, or a domain of which libvirt keeps snapshots, is refused.
 * @param targets of the disks whose overlays nobody needs any more
 * @returns whether there was anything to merge
 * @throws Failure SOURCE_REFUSED, SOURCE_OFF, MERGE_FAILED, NEEDS_OPERATOR
 */
export async function mergeForeignOverlays(
  source: Source,
  domain: string,
  targets: readonly string[],
): Promise<boolean> {
  const { virsh, paths } = source
  const { inactiveXml, liveXml } = await readBothXml(virsh, domain)
  const live = readDomainXml(liveXml)
  const qemu = await findQemu(live.uuid)
  if (!qemu)
    throw new Failure(
      'SOURCE_OFF',
      `domain ${domain} does not run, so its overlays are not known`,
      {
        remedy: `virsh start --paused ${domain}, then again; virsh destroy ${domain} if it is to be off`,
      },
    )
  const kept = (await virsh.text(['snapshot-list', domain, '--name'])).trim()
  if (kept !== '')
    refuse(
      `libvirt keeps snapshots of ${domain}: ${kept.split(/\s+/).join(', ')}`,
      `whoever made them should merge them: virsh snapshot-list ${domain}`,
    )
  const monitor = virsh.monitor(domain)
  const [chains, nodes] = [await readChains(monitor), await readNodes(monitor)]
  for (const target of targets)
    if (!live.disks.some(disk => disk.target === target))
      refuse(`domain ${domain} has no disk ${target}`, `virsh domblklist ${domain}`)
  const disks = live.disks
    .filter(disk => targets.includes(disk.target))
    .flatMap(disk => overlaid(domain, disk, chains, nodes))
  if (disks.length === 0) return false
  for (const disk of disks) await checkOnlyUser(source, domain, disk, qemu)

  const instant = new Date()
  const id = newRecoveryPointId(instant)
  const started = await startJournal(paths.journals, {
    session: id,
    domain,
    uuid: live.uuid,
    recoveryPoint: id,
    instant: instant.toISOString(),
    disks,
    inactiveXml: onBackingStore(inactiveXml, disks) ?? inactiveXml,
    liveXml,
  })
  const journal = await recordStep(started, 'snapshot', { qemu: qemu.identity })
  source.log.warn(
    { domain, session: id, disks },
    'merging overlays that an operator calls left-overs',
  )
  await settle(source, journal)
  return true
}

/** A template has other users; what would be merged into it would be in all of them. */
async function checkOnlyUser(
  { virsh }: Source,
  domain: string,
  { target, base }: SessionDiskRecord,
  { pid }: QemuProcess,
): Promise<void> {
  const remedy = 'is it a template? then nothing may be merged into it'
  const other = (await openersOf(base)).find(opener => opener.pid !== pid)
  if (other)
    refuse(
      `disk ${target} of ${domain}: ${other.command} (pid ${other.pid}) has ${base} open too`,
      remedy,
    )
  const names = (await virsh.text(['list', '--all', '--name'])).split('\n')
  for (const name of names.map(one => one.trim()).filter(one => one !== '' && one !== domain)) {
    const { disks } = readDomainXml(await virsh.text(['dumpxml', '--inactive', '--domain', name]))
    for (const { source, driver } of disks)
      if (
        source !== undefined &&
        (source === base || (driver === 'qcow2' && (await liesOn(source, base))))
      )
        refuse(`disk ${target} of ${domain}: domain ${name} uses ${base} too`, remedy)
  }
}

function overlaid(
  domain: string,
  { target, source, device }: DomainDisk,
  chains: readonly Chain[],
  nodes: readonly Node[],
): SessionDiskRecord[] {
  const chain = chains.find(one => one[0] === source)
  const [overlay, base] = chain ?? []
  if (device !== 'disk' || overlay === undefined || base === undefined) return []
  if (chain?.length !== 2)
    refuse(
      `disk ${target} of ${domain} is a chain of ${chain?.length ?? 0} images, ${chain?.join(' on ') ?? ''}`,
      'merge it by hand, down to one overlay: virsh blockcommit with --base and --top',
    )
  const isFormat = (node: Node): boolean => /^(raw|qcow2)$/.test(node.driver)
  const own = nodes.filter(node => node.file === base)
  // Newer libvirt has no node of its own for raw.
  const format = own.find(isFormat)?.driver ?? (own.length > 0 ? 'raw' : undefined)
  const block = nodes.some(node => node.file === base && node.driver === 'host_device')
  if (format !== 'raw' && format !== 'qcow2')
    return refuse(`disk ${target} of ${domain}: ${base} is neither raw nor qcow2 for QEMU`)
  return [{ target, format, base, baseType: block ? 'block' : 'file', overlay }]
}
