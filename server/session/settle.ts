// Brings a domain back onto its bases, from wherever its journal and QEMU's graph say it is. The end of every session, the
// roll-back of a failed begin and the recovery of a left-over are this one function.

import { stat, unlink } from 'node:fs/promises'
import { setTimeout as delay } from 'node:timers/promises'
import { Failure } from '../../shared/failures.ts'
import { openersOf } from '../../shared/host/openers.ts'
import { reasonOf } from '../../shared/host/run.ts'
import { readDomainXml } from '../libvirt/domain-xml.ts'
import { readChains, readNodeFiles } from '../libvirt/graph.ts'
import { thaw } from '../libvirt/freeze.ts'
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

/** @throws Failure MERGE_FAILED or NEEDS_OPERATOR; the journal then stays open and recover can go on */
export async function settle(source: Source, journal: Journal): Promise<SettledDisk[]> {
  const { domain, uuid } = journal.intent
  const state = await domainState(source, domain)
  if (state !== 'running' && state !== 'paused') return settleStopped(source, journal, state)

  const { liveXml } = await readBothXml(source.virsh, domain)
  if (readDomainXml(liveXml).uuid !== uuid)
    return needsOperator(
      source,
      journal,
      `domain ${domain} is another one now (its UUID changed)`,
      [],
    )

  if (hasStep(journal, 'freeze') && !hasStep(journal, 'frozen'))
    await thaw(source.virsh, domain, CLOSE_PATIENCE_MS)

  const settled: SettledDisk[] = []
  for (const disk of journal.intent.disks) {
    const done = await settleDisk(source, journal, disk)
    journal = done.journal
    settled.push(done.disk)
  }
  await checkOnBases(source, journal)
  await recordStep(journal, 'done')
  source.log.info(
    { domain, recoveryPoint: journal.intent.recoveryPoint, disks: settled },
    'merged, on its bases',
  )
  return settled
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
  if (chains.some(chain => chain.includes(overlay))) {
    journal = await recordStep(journal, 'merge', { target })
    await mergeDisk(virsh, domain, disk, async () => {
      journal = await recordStep(journal, 'pivot', { target })
    })
  } else if (!chains.some(chain => chain.includes(disk.base)))
    return needsOperator(
      source,
      journal,
      `disk ${target} of ${domain} is neither on its base nor on its overlay`,
      [
        `# look at what it is on: virsh domblklist ${domain}`,
        `# its base is ${disk.base}, its overlay ${overlay}`,
      ],
    )

  const mergeMs = Date.now() - started
  journal = await recordStep(journal, 'clean', { target, mergeMs, overlayBytes })
  await removeOverlay(source, domain, overlay)
  return { journal, disk: { target, mergeMs, overlayBytes } }
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

/** The last look: QEMU and both XMLs name the recorded bases. */
async function checkOnBases(source: Source, journal: Journal): Promise<void> {
  const { domain, disks } = journal.intent
  const chains = await readChains(source.virsh, domain)
  const { inactiveXml, liveXml } = await readBothXml(source.virsh, domain)
  const sources = [readDomainXml(liveXml), readDomainXml(inactiveXml)]
  for (const { target, base } of disks) {
    const inQemu = chains.some(chain => chain[0] === base)
    const inXml = sources.every(xml =>
      xml.disks.some(disk => disk.target === target && disk.source === base),
    )
    if (!inQemu || !inXml)
      await needsOperator(
        source,
        journal,
        `disk ${target} of ${domain}: QEMU and libvirt do not both name ${base}`,
        [
          `virsh domblklist ${domain}; virsh domblklist --inactive ${domain}`,
          `virsh qemu-monitor-command ${domain} '{"execute":"query-block"}' --pretty`,
        ],
      )
  }
}

/** A domain that does not run: nothing is merged here, and nothing that may hold guest data is touched. */
async function settleStopped(
  source: Source,
  journal: Journal,
  state: string,
): Promise<SettledDisk[]> {
  const { domain, disks } = journal.intent
  const known = state !== 'unknown to libvirt'
  const definition = known
    ? readDomainXml((await readBothXml(source.virsh, domain)).inactiveXml)
    : undefined
  const written = hasStep(journal, 'snapshot')
  const held = await Promise.all(
    disks.map(async disk => {
      const named = definition?.disks.some(other => other.source === disk.overlay) === true
      const exists = (await stat(disk.overlay).catch(() => undefined)) !== undefined
      // 'clean' is recorded only after QEMU had lost the overlay, so such a file holds nothing any more.
      return named || (exists && written && !hasStep(journal, 'clean', disk.target))
    }),
  )
  const stuck = disks.filter((_, index) => held[index])
  if (stuck.length > 0)
    return needsOperator(
      source,
      journal,
      `domain ${domain} is ${state} and the overlay of ${stuck.map(disk => disk.target).join(', ')} holds what the guest wrote`,
      [
        `virsh start --paused ${domain}`,
        `clone-server recover ${domain}`,
        `virsh destroy ${domain}   # if it is to be off`,
      ],
    )
  for (const disk of disks) {
    const [opener] = await openersOf(disk.overlay)
    if (opener)
      return needsOperator(
        source,
        journal,
        `domain ${domain} is ${state}, yet pid ${opener.pid} has ${disk.overlay} open`,
        [],
      )
    await unlink(disk.overlay).catch(() => undefined)
  }
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
  const last = journal.entries.at(-1)
  if (last?.step !== 'needs operator' || last.reason !== reason)
    await recordStep(journal, 'needs operator', { reason })
  source.log.error({ domain: journal.intent.domain, reason }, 'needs operator')
  throw new Failure('NEEDS_OPERATOR', reason, { remedy: commands.join('\n        ') || undefined })
}
