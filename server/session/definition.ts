// libvirt's stored XMLs of a domain put back onto its bases, when libvirt did not do it itself: the definition, and the XML inside
// a managed save image, from which a start would take the disks.

import { rm, writeFile } from 'node:fs/promises'
import { Failure } from '../../shared/failures.ts'
import { reasonOf } from '../../shared/host/run.ts'
import { readDomainXml } from '../libvirt/domain-xml.ts'
import { definitionOnBase } from '../libvirt/on-base.ts'
import type { Source } from '../source.ts'
import type { Journal, SessionDiskRecord } from './journal.ts'

interface Stored {
  readonly read: readonly string[]
  readonly write: (domain: string, file: string) => readonly string[]
}

const DEFINITION: Stored = {
  read: ['dumpxml', '--inactive', '--security-info'],
  write: (_domain, file) => ['define', file],
}
const MANAGED_SAVE: Stored = {
  read: ['managedsave-dumpxml', '--security-info'],
  write: (domain, file) => ['managedsave-define', domain, file],
}

async function storedXmls(source: Source, domain: string): Promise<Stored[]> {
  const info = await source.virsh.text(['dominfo', '--domain', domain])
  return /^Managed save:\s*yes/m.test(info) ? [DEFINITION, MANAGED_SAVE] : [DEFINITION]
}

/** Every image that the stored XMLs of a domain name as a disk, with its format. @throws Failure SOURCE_REFUSED */
export async function storedSources(source: Source, domain: string): Promise<Map<string, string>> {
  const sources = new Map<string, string>()
  for (const { read } of await storedXmls(source, domain)) {
    const xml = await source.virsh.text([...read, '--domain', domain])
    for (const disk of readDomainXml(xml).disks)
      if (disk.source !== undefined) sources.set(disk.source, disk.driver)
  }
  return sources
}

/** Corrects every stored XML that names the overlay of one of these disks. @throws Failure MERGE_FAILED */
export async function putDefinitionOnBase(
  source: Source,
  journal: Journal,
  disks: readonly SessionDiskRecord[],
): Promise<void> {
  const { domain, inactiveXml } = journal.intent
  for (const { read, write } of await storedXmls(source, domain)) {
    const xml = await source.virsh.text([...read, '--domain', domain])
    const corrected = definitionOnBase(xml, inactiveXml, disks)
    if (corrected === undefined) continue
    const file = `${journal.file}.corrected.xml`
    const command = write(domain, file)
    await writeFile(file, corrected, { mode: 0o600 })
    const result = await source.virsh.run(command).finally(() => rm(file, { force: true }))
    if (result.exitCode !== 0)
      throw new Failure(
        'MERGE_FAILED',
        `domain ${domain} is merged, but its definition still names an overlay: ${reasonOf(result)}`,
        { remedy: `correct the disks: virsh edit ${domain}` },
      )
    source.log.warn({ domain }, `virsh ${command[0] ?? ''}: it names its bases again`)
  }
}
