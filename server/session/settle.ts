// Brings a domain back onto its bases, from wherever its journal and QEMU's graph say it is. The end of every session, the
// roll-back of a failed begin and the recovery of a left-over are this one function.

import { stat, unlink } from 'node:fs/promises'
import { setTimeout as delay } from 'node:timers/promises'
import { Failure, toFailure } from '../../shared/failures.ts'
import { openersOf } from '../../shared/host/openers.ts'
import { reasonOf } from '../../shared/host/run.ts'
import { readDomainXml } from '../libvirt/domain-xml.ts'
import { readChains, readNodeFiles } from '../libvirt/graph.ts'
import { isNoAgent, thaw } from '../libvirt/freeze.ts'
import type { Source } from '../source.ts'
import { hasStep, recordStep, type Journal, type SessionDiskRecord } from './journal.ts'
import { mergeDisk } from './merge.ts'
import { readBothXml } from './preflight.ts'

export interface SettledDisk {
  readonly target: string
  readonly mergeMs: number
  readonly overlayBytes: number
}

const CLOSE_PATIENCE_MS = 10_000
const THAW_PATIENCE_MS = 10_000

/** @throws Failure MERGE_FAILED or NEEDS_OPERATOR; the journal then stays open and recover can go on */
export async function settle(source: Source, journal: Journal): Promise<SettledDisk[]> {
  const { domain } = journal.intent
  try {
    const state = await domainState(source, domain)
    if (state === 'running' || state === 'paused') return await settleRunning(source, journal)
    return await settleStopped(source, journal, state)
  } catch (error) {
    const failure = toFailure(error)
    if (failure.code === 'MERGE_FAILED' || failure.code === 'NEEDS_OPERATOR') throw failure
    // Whatever stopped us, the domain may be on its overlays.
    throw new Failure('MERGE_FAILED', `domain ${domain} is not settled: ${failure.message}`, {
      cause: error,
      remedy: `on the source run: clone-server recover ${domain}`,
    })
  }
}

async function settleRunning(source: Source, journal: Journal): Promise<SettledDisk[]> {
  const { domain, uuid, recoveryPoint } = journal.intent
  const { liveXml } = await readBothXml(source.virsh, domain)
  if (readDomainXml(liveXml).uuid !== uuid)
    return needsOperator(
      source,
      journal,
      `domain ${domain} is another one now (its UUID changed)`,
      [`compare the disks in ${journal.file} with: virsh domblklist ${domain}`],
    )
  const mayBeFrozen = hasStep(journal, 'freeze') && !hasStep(journal, 'frozen')
  const thawed =
    !mayBeFrozen ||
    (await thaw(source.virsh, domain, THAW_PATIENCE_MS)) ||
    !(await hasAgent(source, domain))

  const settled: SettledDisk[] = []
  for (const disk of journal.intent.disks) {
    const done = await settleDisk(source, journal, disk)
    journal = done.journal
    settled.push(done.disk)
  }
  await checkOnBases(source, journal)
  if (!thawed)
    return needsOperator(
      source,
      journal,
      `the guest of ${domain} does not confirm that it is thawed`,
      [`virsh domfsthaw ${domain}`],
    )
  await recordStep(journal, 'done')
  source.log.info({ domain, recoveryPoint, disks: settled }, 'merged, on its bases')
  return settled
}

/** Without an agent nothing can have been frozen through it. */
async function hasAgent(source: Source, domain: string): Promise<boolean> {
  return !isNoAgent(reasonOf(await source.virsh.run(['domfsthaw', domain], 15_000)))
}

async function domainState(source: Source, domain: string): Promise<string> {
  const result = await source.virsh.run(['domstate', '--domain', domain])
  if (result.exitCode === 0) return result.stdout.trim()
  const reason = reasonOf(result)
  if (/failed to get domain/.test(reason)) return 'unknown to libvirt'
  throw new Failure('MERGE_FAILED', `cannot ask libvirt about ${domain}: ${reason}`, {
    remedy: `start libvirtd, then run: clone-server recover ${domain}`,
  })
}

async function settleDisk(
  source: Source,
  journal: Journal,
  disk: SessionDiskRecord,
): Promise<{ journal: Journal; disk: SettledDisk }> {
  const { virsh } = source
  const { domain } = journal.intent
  const { target, overlay } = disk
  const overlayBytes = (await stat(overlay).catch(() => undefined))?.size ?? 0
  const started = Date.now()

  const chains = await readChains(virsh, domain)
  const ours = chains.some(chain => chain.includes(overlay))
  if (ours) {
    journal = await recordStep(journal, 'merge', { target })
    await mergeDisk(virsh, domain, disk, async () => {
      journal = await recordStep(journal, 'pivot', { target })
    })
  } else if (
    !chains.some(chain => isSettled(chain, disk.base)) &&
    !hasStep(journal, 'clean', target)
  )
    return needsOperator(
      source,
      journal,
      `disk ${target} of ${domain} is neither on its base nor on its overlay`,
      [
        `look at what it is on: virsh qemu-monitor-command ${domain} '{"execute":"query-block"}' --pretty`,
        `its base is ${disk.base}, its overlay ${overlay}`,
      ],
    )

  const mergeMs = Date.now() - started
  if (!hasStep(journal, 'clean', target))
    journal = await recordStep(journal, 'clean', { target, mergeMs, overlayBytes })
  await removeOverlay(source, domain, overlay)
  return { journal, disk: { target, mergeMs, overlayBytes } }
}

/** The base takes the guest's writes itself. */
function isSettled(chain: readonly string[], base: string): boolean {
  return chain[0] === base
}

/** Deletes an overlay only when QEMU's graph lacks it, no XML names it and no process has it open. */
async function removeOverlay(source: Source, domain: string, overlay: string): Promise<void> {
  const end = Date.now() + CLOSE_PATIENCE_MS
  for (;;) {
    const user = await overlayUser(source, domain, overlay)
    if (user === undefined) break
    if (Date.now() > end)
      throw new Failure('MERGE_FAILED', `overlay ${overlay} of ${domain} is still used by ${user}`)
    await delay(100)
  }
  await unlink(overlay).catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
  })
}

async function overlayUser(
  source: Source,
  domain: string,
  overlay: string,
): Promise<string | undefined> {
  if ((await readNodeFiles(source.virsh, domain)).has(overlay)) return "QEMU's block graph"
  const { inactiveXml, liveXml } = await readBothXml(source.virsh, domain)
  if (namesSource(liveXml, overlay)) return "the running domain's XML"
  if (namesSource(inactiveXml, overlay)) return "the domain's definition"
  const [opener] = await openersOf(overlay)
  return opener && `${opener.command} (pid ${opener.pid})`
}

function namesSource(xml: string, file: string): boolean {
  return readDomainXml(xml).disks.some(disk => disk.source === file)
}

/**
 * The last look: QEMU and both XMLs agree, and ours is nowhere. An admin's snapshot that was stacked on ours stays where it
 * is, on the base.
 */
async function checkOnBases(source: Source, journal: Journal): Promise<void> {
  const { domain, disks } = journal.intent
  const chains = await readChains(source.virsh, domain)
  const { inactiveXml, liveXml } = await readBothXml(source.virsh, domain)
  const sources = [readDomainXml(liveXml), readDomainXml(inactiveXml)]
  for (const { target, base, overlay } of disks) {
    const chain = chains.find(one => one.includes(base))
    const active = chain?.[0]
    const agreed = sources.every(xml =>
      xml.disks.some(disk => disk.target === target && disk.source === active),
    )
    if (!chain || chain.includes(overlay) || !agreed)
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

/** A domain that libvirt says does not run: nothing is merged here, and nothing that may hold guest data is touched. */
async function settleStopped(
  source: Source,
  journal: Journal,
  state: string,
): Promise<SettledDisk[]> {
  const { domain, disks } = journal.intent
  for (const file of disks.flatMap(({ base, overlay }) => [base, overlay])) {
    const [opener] = await openersOf(file)
    // libvirt itself can be wrong, and a start would then take away the means to put it right.
    if (opener)
      return needsOperator(
        source,
        journal,
        `libvirt says that ${domain} is ${state}, but ${opener.command} (pid ${opener.pid}) has ${file} open`,
        [
          `do NOT start ${domain}; find out what pid ${opener.pid} is, and restart libvirtd if it is QEMU`,
        ],
      )
  }
  const known = state !== 'unknown to libvirt'
  const definition = known
    ? readDomainXml((await readBothXml(source.virsh, domain)).inactiveXml)
    : undefined
  const held = await Promise.all(
    disks.map(async ({ target, overlay }) => {
      if (definition?.disks.some(other => other.source === overlay)) return true
      // 'clean' is recorded only after QEMU had lost the overlay, so such a file holds nothing any more.
      if (!hasStep(journal, 'snapshot') || hasStep(journal, 'clean', target)) return false
      // A frozen session's overlay was there; a missing one may lie on a file system that is not mounted.
      return (
        hasStep(journal, 'frozen') || (await stat(overlay).catch(() => undefined)) !== undefined
      )
    }),
  )
  const stuck = disks.filter((_, index) => held[index])
  if (stuck.length > 0)
    return needsOperator(
      source,
      journal,
      `domain ${domain} is ${state}, and what its guest wrote last is in the overlay of ${stuck.map(disk => disk.target).join(', ')}`,
      [
        `virsh start --paused ${domain}`,
        `clone-server recover ${domain}`,
        `virsh destroy ${domain}   (if it is to be off)`,
      ],
    )
  for (const { overlay } of disks) await unlink(overlay).catch(() => undefined)
  await recordStep(journal, 'done')
  return disks.map(({ target }) => ({ target, mergeMs: 0, overlayBytes: 0 }))
}

async function needsOperator(
  source: Source,
  journal: Journal,
  reason: string,
  commands: readonly string[],
): Promise<never> {
  // recover looks again every minute; the journal says it once.
  const last = journal.entries.findLast(entry => entry.step === 'needs operator')
  if (last?.reason !== reason) await recordStep(journal, 'needs operator', { reason })
  source.log.error({ domain: journal.intent.domain, reason }, 'needs operator')
  throw new Failure('NEEDS_OPERATOR', reason, { remedy: commands.join('\n        ') || undefined })
}
