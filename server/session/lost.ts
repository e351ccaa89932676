// A domain that runs while libvirt says it does not. libvirtd that dies over a pivot leaves a status XML that its successor cannot
// read; a start would then destroy the only means of putting it right. QEMU is brought onto the bases over its own monitor,
// the status XML is corrected, and libvirt reads it again when it is restarted.

import { copyFile, readFile, stat } from 'node:fs/promises'
import { setTimeout as delay } from 'node:timers/promises'
import { Failure, toFailure } from '../../shared/failures.ts'
import { writeDurably } from '../../shared/host/durable.ts'
import { reasonOf, run } from '../../shared/host/run.ts'
import { dropNodes, readChains, readNodes } from '../libvirt/graph.ts'
import { openMonitorSocket, type Monitor } from '../libvirt/monitor.ts'
import { onBackingStore, statusPid } from '../libvirt/on-base.ts'
import { findQemu, type QemuProcess } from '../libvirt/qemu-process.ts'
import { libvirtView } from '../libvirt/view.ts'
import type { Source } from '../source.ts'
import { putDefinitionOnBase } from './definition.ts'
import { isClean, lastStep, recordStep, type Journal, type SessionDiskRecord } from './journal.ts'
import { mergeInQemu } from './merge-in-qemu.ts'
import { needsOperator } from './stuck.ts'

/** A domain that is being stopped is gone for libvirt a moment before its process is. */
const SETTLE_MS = 1500
const ADOPT_PATIENCE_MS = 30_000
const STATUS_DIRECTORY = '/run/libvirt/qemu'

/**
 * Returns when libvirt knows the domain again.
 * @param state libvirt's words for it
 * @throws Failure NEEDS_OPERATOR when that cannot be done here, MERGE_FAILED when the process has ended meanwhile
 */
export async function bringBackToLibvirt(
  source: Source,
  journal: Journal,
  qemu: QemuProcess,
  state: string,
): Promise<void> {
  const { domain, uuid, disks } = journal.intent
  const { virsh, log } = source
  await delay(SETTLE_MS)
  const still = await findQemu(uuid)
  if (still?.identity !== qemu.identity || (await libvirtView(virsh, domain)).active)
    throw new Failure('MERGE_FAILED', `domain ${domain} was just being started or stopped`)

  const what = `libvirt says that ${domain} is ${state}, but it runs (QEMU is pid ${qemu.pid})`
  const never = `do NOT start ${domain}: libvirt would forget how to find it again`
  const file = `${STATUS_DIRECTORY}/${domain}.xml`
  const status = await readFile(file, 'utf8').catch(() => undefined)
  const ours = status !== undefined && statusPid(status) === qemu.pid
  log.error({ domain, session: journal.intent.session, pid: qemu.pid, status: ours }, what)

  if (qemu.monitor === undefined)
    return needsOperator(source, journal, `${what}, and its monitor is not known`, [never])
  const merged = await mergeOverSocket(source, journal, qemu).catch((error: unknown) => {
    if (error instanceof Failure && error.code === 'SOURCE_REFUSED')
      return needsOperator(source, journal, `${what}: ${error.message}`, [never])
    throw error
  })
  journal = merged.journal
  // Before anything else: a definition that still names an overlay would have it believed when the domain is off.
  if (state !== 'unknown to libvirt') await putDefinitionOnBase(source, journal, merged.onBase)
  if (!ours)
    return needsOperator(source, journal, `${what}; its disks are on their bases`, [
      never,
      `its status file ${file} is gone, so shut the guest down from within, then: clone-server recover ${domain}`,
    ])

  const corrected = onBackingStore(status, disks)
  if (corrected !== undefined) {
    await copyFile(file, `${journal.file}.status.xml`)
    await writeDurably(file, corrected, (await stat(file)).mode & 0o777)
  }
  const restart = source.config.restartLibvirt ?? (await unitRestart())
  // A restart that did not help is not tried again and again: other domains may be in the middle of something.
  const helped = corrected !== undefined || journal.entries.at(-1)?.step !== 'needs operator'
  if (!restart || !helped)
    return needsOperator(source, journal, `${what}; its disks are on their bases`, [
      never,
      `restart libvirtd (or virtqemud), then: clone-server recover ${domain}`,
    ])
  await restartLibvirt(source, journal, restart)
}

interface Merged {
  readonly journal: Journal
  /** Disks whose base is known to have everything. */
  readonly onBase: readonly SessionDiskRecord[]
}

/** Merges what is on overlays, and closes what a pivot left open; what is merged is recorded at once. */
async function mergeOverSocket(
  source: Source,
  journal: Journal,
  { identity, monitor: path = '' }: QemuProcess,
): Promise<Merged> {
  await using monitor = await openMonitorSocket(path)
  const onBase: SessionDiskRecord[] = []
  for (const disk of journal.intent.disks) {
    const { target, base, overlay } = disk
    const record = async (step: 'merge' | 'pivot' | 'clean'): Promise<void> => {
      journal = await recordStep(journal, step, { target, qemu: identity })
    }
    if (await isInChain(monitor, overlay)) {
      await record('merge')
      await mergeInQemu(monitor, journal.intent.domain, disk, () => record('pivot'))
    }
    // A pivot that was begun in this very process, and the base on top: it came to its end.
    const begun = lastStep(journal, 'pivot', target)?.qemu === identity
    const active = (await readChains(monitor)).some(chain => chain[0] === base)
    if (begun && active && !isClean(journal, target)) await record('clean')
    if (isClean(journal, target)) onBase.push(disk)
    if ((await readNodes(monitor)).some(node => node.file === overlay))
      await dropNodes(monitor, overlay).catch((error: unknown) =>
        source.log.debug(
          { overlay, error: toFailure(error) },
          'a node of the overlay did not close',
        ),
      )
  }
  return { journal, onBase }
}

async function isInChain(monitor: Monitor, file: string): Promise<boolean> {
  return (await readChains(monitor)).some(chain => chain.includes(file))
}

/** Under systemd the unit that runs libvirt's QEMU driver is known. */
async function unitRestart(): Promise<readonly string[] | undefined> {
  for (const unit of ['virtqemud.service', 'libvirtd.service']) {
    const active = await run('systemctl', ['is-active', '--quiet', unit])
    if (active.exitCode === 0) return ['systemctl', 'restart', unit]
  }
  return undefined
}

async function restartLibvirt(
  source: Source,
  journal: Journal,
  [file = '', ...args]: readonly string[],
): Promise<void> {
  const { domain } = journal.intent
  source.log.warn(
    { domain, command: [file, ...args] },
    'restarting libvirt so that it finds it again',
  )
  const result = await run(file, args)
  const end = Date.now() + ADOPT_PATIENCE_MS
  while (result.exitCode === 0 && Date.now() < end) {
    if ((await libvirtView(source.virsh, domain)).active) return
    await delay(500)
  }
  await needsOperator(
    source,
    journal,
    `libvirt does not find the running domain ${domain} again (${[file, ...args].join(' ')}: ${reasonOf(result)})`,
    [`do NOT start ${domain}; restart libvirtd, then: clone-server recover ${domain}`],
  )
}
