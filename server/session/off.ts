// A session of a domain that is off: nothing is snapshotted, its bases are read as they are. Two things make that one
// recovery point: libvirt's hook ends the session before a start goes on, and a release proves that no base has changed.

import { readFile, stat } from 'node:fs/promises'
import { setTimeout as delay } from 'node:timers/promises'
import { Failure } from '../../shared/failures.ts'
import type { RecoveryPoint } from '../../shared/gate.ts'
import { openersOf, type Opener } from '../../shared/host/openers.ts'
import { domainSettings } from '../config/schema.ts'
import { readDominfo } from '../libvirt/dominfo.ts'
import { readDomainXml, type DomainXml } from '../libvirt/domain-xml.ts'
import { readHostFacts } from '../libvirt/facts.ts'
import { findQemu } from '../libvirt/qemu-process.ts'
import { startHookFault } from '../libvirt/start-hook.ts'
import type { Source } from '../source.ts'
import { UNTRACKED } from '../tracking/tracking.ts'
import type { Frozen } from './begin.ts'
import { exportedSize, flushBuffers, readNvram, refuse } from './images.ts'
import { recordStep, startJournal, type SessionDiskRecord } from './journal.ts'
import { checkImages, checkMessage, chooseDisks, readXml } from './preflight.ts'
import type { SettledDisk } from './session.ts'
import type { Watch } from './starts.ts'

const OPENERS_PATIENCE_MS = 3_000

/** What keeps the bases of a domain that is off still, or tells that they do not stand still. */
export interface OffGuard {
  /** @throws Failure SOURCE_REFUSED unless the domain is off and its bases are as they were when the session began */
  prove(): Promise<void>
  /** What is not as it was, as far as the images themselves tell; libvirt is not asked. */
  changed(): Promise<string | undefined>
  /** Breaks when a start is heard of. */
  readonly watch: Watch
}

/** @throws Failure SOURCE_OFF without the hook; SOURCE_REFUSED, NEEDS_OPERATOR */
export async function beginOff(
  source: Source,
  domain: string,
  point: Pick<RecoveryPoint, 'id' | 'instant'>,
): Promise<Frozen> {
  const { virsh, log, paths } = source
  // Before libvirt is asked: a start that it does not tell of yet is heard here.
  const watch = source.starts.watch(domain)
  try {
    await checkOff(source, domain)
    const inactiveXml = await readXml(virsh, domain, ['--inactive'])
    const xml = readDomainXml(inactiveXml)
    const host = await readHostFacts(virsh, xml)
    await checkGuarded(source, domain, host.host.libvirt)
    const settings = domainSettings(source.config, domain)
    const chosen = chooseDisks(domain, xml, xml, settings, point.id).disks
    await watch.covers(chosen.map(disk => disk.base))
    await checkAtRest(domain, xml, chosen)
    for (const disk of chosen) await flushBuffers(disk)
    const guard = await createGuard(source, domain, chosen, watch)
    await checkImages(domain, chosen)
    const nvram = await readVariables(xml)
    checkMessage(domain, [inactiveXml], nvram)
    const disks = await Promise.all(
      chosen.map(async disk => ({ ...disk, size: await exportedSize(disk) })),
    )

    // Only the intent: nothing is touched, so there is nothing to undo, but readers that outlive serve are found by it.
    const journal = await startJournal(paths.journals, {
      session: point.id,
      domain,
      uuid: xml.uuid,
      recoveryPoint: point.id,
      instant: point.instant,
      disks: chosen,
      inactiveXml,
      liveXml: '',
    })
    // From here to `onBreak` no event can come in between: the session exists before the next one is handled.
    const broken = watch.broken()
    if (broken) {
      await recordStep(journal, 'done')
      throw broken
    }
    const recoveryPoint = { ...point, consistency: 'off' as const }
    log.info({ domain, recoveryPoint: point.id, consistency: 'off' }, 'frozen')
    return {
      journal,
      recoveryPoint,
      disks,
      off: guard,
      tracking: UNTRACKED,
      info: {
        recoveryPoint,
        uuid: xml.uuid,
        disks: disks.map(({ target, format, size }) => ({ target, format, size })),
        inactiveXml,
        liveXml: '',
        nvram: nvram?.toString('base64') ?? null,
        ...host,
        freezeMs: 0,
        snapshotMs: 0,
      },
    }
  } catch (error) {
    watch.close()
    // A start that came in between explains whatever was found.
    throw watch.broken() ?? error
  }
}

/** Ends it: there is nothing to merge. A stock client cannot be told that its copy is torn, so the log says it. */
export async function endOff(source: Source, frozen: Frozen): Promise<SettledDisk[]> {
  const changed = await frozen.off?.changed()
  frozen.off?.watch.close()
  const { domain, recoveryPoint } = frozen.journal.intent
  if (changed !== undefined)
    source.log.warn({ domain, recoveryPoint, changed }, 'what was read last is not one instant')
  await recordStep(frozen.journal, 'done')
  source.log.info({ domain, recoveryPoint }, 'over, nothing to merge')
  return []
}

/** libvirt must say that the domain is off, and that no memory is saved for it. */
async function checkOff(source: Source, domain: string): Promise<void> {
  const { active, managedSave } = await readDominfo(source.virsh, domain)
  if (active) refuse(`domain ${domain} is being started`, 'pull again when it runs')
  if (managedSave)
    throw new Failure(
      'SOURCE_OFF',
      `domain ${domain} is saved (virsh managedsave): a part of what is on its disks is in that memory, which is not cloned`,
      {
        remedy: `virsh start ${domain}, then pull; or, which loses that memory: virsh managedsave-remove ${domain}`,
      },
    )
}

/** Without the hook a start could begin to write while the disks are read. */
async function checkGuarded(source: Source, domain: string, version: string): Promise<void> {
  const { paths, config } = source
  const fault = await startHookFault(paths.serveSocket, config.libvirtUri, version)
  if (!fault) return
  const start = `virsh start ${domain}`
  const [first] = fault.remedy
  throw new Failure(
    'SOURCE_OFF',
    `domain ${domain} is shut off, and nothing would tell of its start: ${fault.reason}`,
    {
      remedy: first
        ? [`${start}; or to pull it as it is:`, ...fault.remedy].join('\n        ')
        : start,
    },
  )
}

/** libvirt can be wrong about "shut off": no QEMU of this domain may run, and no process may have an image open. */
async function checkAtRest(
  domain: string,
  xml: DomainXml,
  disks: readonly SessionDiskRecord[],
): Promise<void> {
  const qemu = await findQemu(xml.uuid)
  if (qemu)
    throw new Failure(
      'NEEDS_OPERATOR',
      `libvirt says that ${domain} is shut off, but its QEMU runs (pid ${qemu.pid})`,
      {
        remedy: `do NOT start ${domain}: two QEMUs would write to its disks; restart libvirtd, then look: virsh domstate ${domain}`,
      },
    )
  for (const { target, base } of disks) {
    const opener = await lastingOpener(base)
    if (opener)
      refuse(
        `disk ${target} of ${domain}: libvirt says that ${domain} is shut off, but ${opener.command} (pid ${opener.pid}) has ${base} open`,
        `look at it: ps ${opener.pid}; pull again when it has ended`,
      )
  }
}

/** A process that has the file open, and keeps it open: a hook of an ended connection has it for a moment longer. */
async function lastingOpener(file: string): Promise<Opener | undefined> {
  const end = Date.now() + OPENERS_PATIENCE_MS
  for (;;) {
    const [opener] = await openersOf(file)
    if (!opener || Date.now() > end) return opener
    await delay(100)
  }
}

async function createGuard(
  source: Source,
  domain: string,
  disks: readonly SessionDiskRecord[],
  watch: Watch,
): Promise<OffGuard> {
  const before = await Promise.all(disks.map(stateOf))

  async function changed(): Promise<string | undefined> {
    for (const [index, disk] of disks.entries()) {
      const { target, base } = disk
      const writer = (await openersOf(base)).find(opener => opener.writes)
      if (writer) return `${writer.command} (pid ${writer.pid}) writes to ${base} of disk ${target}`
      if ((await stateOf(disk).catch(() => undefined)) !== before[index])
        return `${base} of disk ${target} was changed`
    }
    return undefined
  }

  return {
    changed,
    async prove() {
      const { active } = await readDominfo(source.virsh, domain)
      const why = active ? 'it is on' : await changed()
      if (why !== undefined)
        throw new Failure(
          'SOURCE_REFUSED',
          `domain ${domain} did not stay shut off during the session: ${why}`,
          { remedy: 'nothing was published; pull again' },
        )
    },
    watch,
  }
}

/** Differs whenever an image was written to, replaced or resized. @throws when it is not there */
async function stateOf(disk: SessionDiskRecord): Promise<string> {
  const found = await stat(disk.base, { bigint: true }).catch((error: unknown) => {
    throw new Failure('SOURCE_REFUSED', `cannot read ${disk.base}`, { cause: error })
  })
  if (disk.baseType === 'file')
    return [found.dev, found.ino, found.size, found.mtimeNs, found.ctimeNs].join(' ')
  return `${found.rdev} ${await exportedSize(disk)} ${await writesOf(Number(found.rdev))}`
}

/**
 * How much was ever written to a block device, and discarded on it: a device has no time of change.
 * https://docs.kernel.org/block/stat.html
 */
async function writesOf(rdev: number): Promise<string> {
  const major = (rdev >> 8) & 0xfff
  const minor = (rdev & 0xff) | ((rdev >> 12) & 0xfff00)
  const line = await readFile(`/sys/dev/block/${major}:${minor}/stat`, 'utf8')
  const fields = line.trim().split(/\s+/)
  return [fields[4], fields[6], fields[11], fields[13]].join(' ')
}

/** UEFI variables; a domain that never ran may have none yet. */
async function readVariables(xml: DomainXml): Promise<Buffer | undefined> {
  const { nvram } = xml
  const found = nvram !== undefined && (await stat(nvram).catch(() => undefined))
  return found ? readNvram(nvram) : undefined
}
