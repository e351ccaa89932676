// The disks of a domain: which a pull would export, which it leaves out, and which would have it refused.

import { access, constants } from 'node:fs/promises'
import { exportability, readDomainXml, type DomainDisk } from '../libvirt/domain-xml.ts'
import { checkWhole, exportedSize } from '../session/images.ts'
import { definitionBefore, isOpen, type SessionDiskRecord } from '../session/journal.ts'
import { overlayPath } from '../session/preflight.ts'
import type { DomainFacts, Known } from './domain.ts'
import { fail, pass, type Outcome } from './finding.ts'
import { overlayPartsOf } from './leftovers.ts'

/** The disks as they were before the session that is on, if one is. */
function disksOf({ journal }: DomainFacts, { live }: Known): readonly DomainDisk[] {
  return journal && isOpen(journal) ? readDomainXml(definitionBefore(journal)).disks : live.disks
}

/** What can be said of a disk from XML alone. */
export function judgeDisk(
  facts: Pick<DomainFacts, 'domain' | 'settings'>,
  disk: DomainDisk,
  saved: DomainDisk | undefined,
): Outcome | { readonly export: SessionDiskRecord } {
  const { domain, settings } = facts
  const { target, source } = disk
  const verdict = exportability(domain, disk, settings.disks[target]?.exclude === true)
  if (verdict.kind === 'leave') return pass(`${target} is left out: ${verdict.reason}`)
  if (source !== undefined && overlayPartsOf(source))
    return fail(
      `${target} is on ${source}, an overlay of ours that no open journal names`,
      `clone-server recover ${domain} --merge-overlays ${target}, while the domain runs (virsh start --paused ${domain})`,
      'NEEDS_OPERATOR',
    )
  if (verdict.kind === 'refuse')
    return fail(
      disk.hasBacking
        ? `${target} is on ${source ?? '?'}, an overlay that is not ours or an image with a template: ${verdict.reason}`
        : `${target}${source === undefined ? '' : ` (${source})`}: ${verdict.reason}`,
      verdict.remedy,
    )
  if (saved?.source !== source)
    return fail(
      `${target}: the running domain uses ${source ?? 'nothing'}, its definition ${saved?.source ?? 'nothing'}`,
      'make them equal (virsh attach-disk or detach-disk with --config), or exclude the disk',
    )
  return {
    export: {
      target,
      format: verdict.format,
      base: verdict.base,
      baseType: disk.type === 'block' ? 'block' : 'file',
      overlay: overlayPath(settings.overlayDir, domain, target, 'RECOVERY-POINT'),
    },
  }
}

export async function lookAtDisks(facts: DomainFacts, known: Known): Promise<Outcome[]> {
  const disks = disksOf(facts, known)
  const inSession = facts.journal !== undefined && isOpen(facts.journal)
  const absent = Object.keys(facts.settings.disks)
    .filter(target => !disks.some(disk => disk.target === target))
    .map(target =>
      fail(
        `${target} is named in source.yaml, and the domain has no such disk`,
        'correct source.yaml',
      ),
    )
  const each = disks.map(async disk => {
    // While a session is on, the definition names its overlays.
    const saved = inSession ? disk : known.inactive.disks.find(one => one.target === disk.target)
    const judged = judgeDisk(facts, disk, saved)
    return 'export' in judged ? lookAtImage(facts.domain, judged.export) : judged
  })
  const outcomes = [...absent, ...(await Promise.all(each))]
  const exported = disks.some(
    disk =>
      exportability(facts.domain, disk, facts.settings.disks[disk.target]?.exclude === true)
        .kind !== 'leave',
  )
  return exported
    ? outcomes
    : [...outcomes, fail('no disk is left to export', 'see exclude in source.yaml')]
}

async function lookAtImage(domain: string, disk: SessionDiskRecord): Promise<Outcome> {
  const { target, base, format, baseType } = disk
  try {
    await access(base, constants.R_OK)
  } catch (error) {
    return fail(
      `${target}: ${base} cannot be read: ${(error as NodeJS.ErrnoException).code ?? String(error)}`,
      `ls -l ${base}`,
    )
  }
  await checkWhole(domain, disk)
  return pass(`${target}: ${base}, ${format}${baseType === 'block' ? ', block device' : ''}`)
}

/** Bytes of all disks that a session would cover; what cannot be read counts nothing. */
export async function bytesOf(facts: DomainFacts): Promise<number | undefined> {
  if (facts.known === undefined || facts.known instanceof Error) return undefined
  const sizes = disksOf(facts, facts.known).map(async disk => {
    const judged = judgeDisk(facts, disk, disk)
    return 'export' in judged ? exportedSize(judged.export).catch(() => 0) : 0
  })
  return (await Promise.all(sizes)).reduce((sum, size) => sum + size, 0)
}
