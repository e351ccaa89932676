// Settles a domain that runs: every disk merged or found on its base, QEMU and both XMLs agreeing, the guest thawed, and going on
// if it was only waiting for space.

import { stat } from 'node:fs/promises'
import { Failure } from '../../shared/failures.ts'
import { reasonOf } from '../../shared/host/run.ts'
import { mergePolicy } from '../config/schema.ts'
import { readDomainXml, type DomainXml } from '../libvirt/domain-xml.ts'
import { isNoAgent, thaw } from '../libvirt/freeze.ts'
import {
  dropNodes,
  readChains,
  readNodes,
  readRunState,
  readStoppedForSpace,
  type Chain,
} from '../libvirt/graph.ts'
import { nothing } from '../libvirt/monitor.ts'
import type { QemuProcess } from '../libvirt/qemu-process.ts'
import type { Source } from '../source.ts'
import { endReading } from '../tracking/tracking.ts'
import { putDefinitionOnBase } from './definition.ts'
import {
  hasStep,
  isClean,
  recordStep,
  type Entry,
  type Journal,
  type SessionDiskRecord,
  type Step,
} from './journal.ts'
import { isElsewhere, judge, reportUndecided, wasPivoted } from './judge.ts'
import { createLadder } from './ladder.ts'
import { mergeDisk } from './merge.ts'
import { commitOffline } from './offline.ts'
import { holdsData, inspectOverlay, removeOverlay } from './overlay.ts'
import { readBothXml } from './preflight.ts'
import type { SettledDisk } from './session.ts'
import { needsOperator, twoHistories } from './stuck.ts'

const THAW_PATIENCE_MS = 10_000

/** A domain being settled: its journal grows as it goes. */
interface Running {
  readonly source: Source
  readonly qemu: QemuProcess
  journal: Journal
}

/** @throws Failure MERGE_FAILED, NEEDS_OPERATOR, or SOURCE_REFUSED when libvirt does not answer */
export async function settleRunning(
  source: Source,
  journal: Journal,
  qemu: QemuProcess,
): Promise<SettledDisk[]> {
  const { domain, recoveryPoint } = journal.intent
  const running: Running = { source, qemu, journal }
  await endPause(running)
  await endReading(source, domain, qemu)
  const thawed = await thawGuest(running)

  const settled: SettledDisk[] = []
  for (const disk of journal.intent.disks) settled.push(await settleDisk(running, disk))
  await checkOnBases(running)
  await resumeIfFull(running)
  if (!thawed)
    await needsOperator(
      source,
      running.journal,
      `the guest of ${domain} does not confirm that it is thawed`,
      [`virsh domfsthaw ${domain}`],
    )
  await record(running, 'done')
  source.log.info({ domain, session: recoveryPoint, disks: settled }, 'merged, on its bases')
  return settled
}

async function record(
  running: Running,
  step: Step,
  facts: Omit<Entry, 'step' | 'at'> = {},
): Promise<void> {
  running.journal = await recordStep(running.journal, step, facts)
}

/** A guest that we paused to let a merge catch up goes on, if we died over it. */
async function endPause(running: Running): Promise<void> {
  const last = running.journal.entries.findLast(one => /^(suspend|resume)$/.test(one.step))
  if (last?.step !== 'suspend') return
  const monitor = running.source.virsh.monitor(running.journal.intent.domain)
  // Another QEMU process that is paused was paused by somebody else.
  const ours = last.qemu === running.qemu.identity && (await readRunState(monitor)) === 'paused'
  if (ours) await monitor.execute({ execute: 'cont' }, nothing)
  await record(running, 'resume')
}

/** @returns whether it is confirmed; without an agent nothing can have been frozen through it */
async function thawGuest({ source, journal }: Running): Promise<boolean> {
  if (!hasStep(journal, 'freeze') || hasStep(journal, 'frozen')) return true
  const { domain } = journal.intent
  if (await thaw(source.virsh, domain, THAW_PATIENCE_MS)) return true
  return isNoAgent(reasonOf(await source.virsh.run(['domfsthaw', domain], 15_000)))
}

async function settleDisk(running: Running, disk: SessionDiskRecord): Promise<SettledDisk> {
  const { source, qemu } = running
  const { domain } = running.journal.intent
  const { target, base, overlay } = disk
  const monitor = source.virsh.monitor(domain)
  const overlayBytes = ((await stat(overlay).catch(() => undefined))?.blocks ?? 0) * 512
  const started = Date.now()

  const [chains, { live, inactive }] = await Promise.all([
    readChains(monitor),
    readSources(running),
  ])
  const facts = {
    target,
    qemu: qemu.identity,
    definedOnOverlay: names(inactive, overlay),
  }
  if (chains.some(chain => chain.includes(overlay))) {
    await record(running, 'merge', facts)
    const known = !isOn(live, target, base)
    if (!known)
      source.log.warn({ domain, target }, 'libvirt lost sight of the overlay, QEMU merges it')
    const policy = mergePolicy(source.config, domain)
    await mergeDisk({
      virsh: source.virsh,
      domain,
      disk,
      known,
      bandwidth: policy.bandwidth,
      ladder: createLadder(source.virsh, source.log, domain, target, policy, (step, reason) =>
        record(running, step, {
          target,
          qemu: qemu.identity,
          ...(reason === undefined ? {} : { reason }),
        }),
      ),
      beforePivot: () => record(running, 'pivot', facts),
    })
  } else if (chains.some(chain => chain[0] === base)) await checkMerged(running, disk)
  else if (!live.disks.some(one => one.target === target) && !uses(chains, base))
    await settleDetached(running, disk, facts)
  else if (!isClean(running.journal, target))
    await needsOperator(
      source,
      running.journal,
      `disk ${target} of ${domain} is neither on its base nor on its overlay`,
      [
        `look at what it is on: virsh qemu-monitor-command ${domain} '{"execute":"query-block"}' --pretty`,
        `its base is ${base}, its overlay ${overlay}`,
      ],
    )

  const mergeMs = Date.now() - started
  // First of all: from here on the base is newer, and the overlay must never be merged again.
  if (!isClean(running.journal, target))
    await record(running, 'clean', { target, mergeMs, overlayBytes })
  await putDefinitionOnBase(source, running.journal, [disk])
  await removeOverlay(domain, overlay, () => overlayUser(running, overlay))
  return { target, mergeMs, overlayBytes }
}

const uses = (chains: readonly Chain[], file: string): boolean =>
  chains.some(chain => chain.includes(file))

const names = (xml: DomainXml, file: string): boolean =>
  xml.disks.some(disk => disk.source === file)

const isOn = (xml: DomainXml, target: string, file: string): boolean =>
  xml.disks.some(disk => disk.target === target && disk.source === file)

/** Both XMLs, read anew. @throws Failure NEEDS_OPERATOR when the name belongs to another domain now */
async function readSources(running: Running): Promise<{ live: DomainXml; inactive: DomainXml }> {
  const { source, journal } = running
  const { domain, uuid } = journal.intent
  const { liveXml, inactiveXml } = await readBothXml(source.virsh, domain)
  const live = readDomainXml(liveXml)
  if (live.uuid !== uuid)
    await needsOperator(source, journal, `domain ${domain} is another one now (its UUID changed)`, [
      `compare the disks in ${journal.file} with: virsh domblklist ${domain}`,
    ])
  return { live, inactive: readDomainXml(inactiveXml) }
}

/** A disk that was detached: as one of a domain that is off, whose overlay no stored XML is asked about. */
async function settleDetached(
  running: Running,
  disk: SessionDiskRecord,
  facts: Omit<Entry, 'step' | 'at'>,
): Promise<void> {
  const { source } = running
  const verdict = await judge(running.journal, disk, new Map())
  await reportUndecided(source, running.journal, disk, verdict)
  if (verdict === 'commit')
    await commitOffline(source, running.journal, disk, step => record(running, step, facts))
}

/**
 * QEMU writes to the base. Nothing is missing if no snapshot was taken, or if its merge was seen to its end, or is QEMU's own
 * doing. A guest that was started again from its stale base, or a disk that was attached again, left in the overlay what was
 * written before.
 */
async function checkMerged(running: Running, disk: SessionDiskRecord): Promise<void> {
  const { source, qemu, journal } = running
  const { domain } = journal.intent
  const { target, base, overlay } = disk
  if (!hasStep(journal, 'snapshot') || isClean(journal, target)) return
  const seen = journal.entries.findLast(
    one => one.qemu !== undefined && (one.target === undefined || one.target === target),
  )
  const begun = hasStep(journal, 'merge', target) || !hasStep(journal, 'frozen')
  if (seen?.qemu === qemu.identity && begun) return
  const file = await inspectOverlay(disk)
  if (wasPivoted(journal, target, file)) return
  if (file.kind === 'missing' && !(await isElsewhere(disk))) return
  if (file.kind === 'ours' && !(await holdsData(disk))) return
  await needsOperator(
    source,
    journal,
    `${domain} runs on ${base}, and what its guest had written to ${overlay} was not seen to be merged into it: two histories of disk ${target}`,
    twoHistories(journal, disk),
  )
}

/** libvirtd that dies over a snapshot or a pivot leaves nodes in QEMU that are in no chain. */
async function dropLeftNodes({ source, journal }: Running, overlay: string): Promise<void> {
  const monitor = source.virsh.monitor(journal.intent.domain)
  if (uses(await readChains(monitor), overlay)) return
  await dropNodes(monitor, overlay).catch((error: unknown) => {
    // libvirt may be closing them itself; who still uses the overlay is asked again before it is deleted.
    source.log.debug({ overlay, error }, 'a node of the overlay did not close')
  })
}

/** Who still uses an overlay, as far as QEMU and libvirt tell; what is left over in QEMU is dropped, and looked at again. */
async function overlayUser(running: Running, overlay: string): Promise<string | undefined> {
  const monitor = running.source.virsh.monitor(running.journal.intent.domain)
  const [nodes, { live, inactive }] = await Promise.all([readNodes(monitor), readSources(running)])
  if (nodes.some(node => node.file === overlay)) {
    await dropLeftNodes(running, overlay)
    return "QEMU's block graph"
  }
  if (names(live, overlay)) return "the running domain's XML"
  return names(inactive, overlay) ? "the domain's definition" : undefined
}

/**
 * The last look: QEMU and both XMLs agree, and ours is nowhere. An admin's snapshot that was stacked on ours stays where it
 * is, on the base; a disk that was detached meanwhile is nowhere.
 */
async function checkOnBases(running: Running): Promise<void> {
  const { source, journal } = running
  const { domain, disks } = journal.intent
  const [chains, { live, inactive }] = await Promise.all([
    readChains(source.virsh.monitor(domain)),
    readSources(running),
  ])
  for (const { target, base, overlay } of disks) {
    const chain = chains.find(one => one.includes(base))
    const active = chain?.[0]
    const detached = !chain && !live.disks.some(disk => disk.target === target)
    const agreed =
      active !== undefined &&
      [live, inactive].every(
        xml => !xml.disks.some(disk => disk.target === target) || isOn(xml, target, active),
      )
    if (uses(chains, overlay) || !(agreed || detached))
      await needsOperator(
        source,
        journal,
        `disk ${target} of ${domain}: QEMU and libvirt do not agree that it is on ${base}`,
        [
          `virsh domblklist ${domain}; virsh domblklist --inactive ${domain}`,
          `virsh qemu-monitor-command ${domain} '{"execute":"query-block"}' --pretty`,
        ],
      )
  }
}

/** A guest that stopped because an overlay of ours found no space has its base again, and goes on. */
async function resumeIfFull({ source, journal }: Running): Promise<void> {
  const { domain, disks } = journal.intent
  const full = await readStoppedForSpace(source.virsh.monitor(domain))
  if (!disks.some(({ base }) => uses(full, base))) return
  const result = await source.virsh.run(['resume', domain])
  if (result.exitCode !== 0)
    throw new Failure(
      'MERGE_FAILED',
      `${domain} is merged, but stays paused: ${reasonOf(result)}`,
      {
        remedy: `virsh resume ${domain}`,
      },
    )
  source.log.warn({ domain }, 'the guest had stopped for lack of overlay space, it goes on')
}
