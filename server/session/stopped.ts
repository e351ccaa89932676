// Settles a domain that is off: no QEMU of it runs, so its overlays are committed by qemu-img and its definition is put back. The
// domain is left off.

import { Failure } from '../../shared/failures.ts'
import { openersOf } from '../../shared/host/openers.ts'
import { readDomainXml } from '../libvirt/domain-xml.ts'
import type { Source } from '../source.ts'
import { putDefinitionOnBase, storedSources } from './definition.ts'
import { hasStep, lastStep, recordStep, type Journal, type SessionDiskRecord } from './journal.ts'
import { commitOffline } from './offline.ts'
import { baseWrittenMs, holdsData, inspectOverlay, liesOn, removeOverlay } from './overlay.ts'
import { readXml } from './preflight.ts'
import type { SettledDisk } from './session.ts'
import { needsOperator, twoHistories } from './stuck.ts'
import { verdictOn, type Verdict } from './verdict.ts'

/** @param state libvirt's words for it. @throws Failure MERGE_FAILED, NEEDS_OPERATOR */
export async function settleStopped(
  source: Source,
  journal: Journal,
  state: string,
): Promise<SettledDisk[]> {
  const { domain, disks, recoveryPoint } = journal.intent
  await checkHere(source, journal, state)
  const named = await storedSources(source, domain)
  const verdicts: Verdict[] = []
  for (const disk of disks) verdicts.push(await judge(journal, disk, named))
  for (const [index, disk] of disks.entries())
    await reportUndecided(source, journal, disk, verdicts[index] ?? 'strange')

  const settled: SettledDisk[] = []
  for (const [index, disk] of disks.entries()) {
    const started = Date.now()
    const { target, overlay } = disk
    const file = await inspectOverlay(disk)
    const overlayBytes = file.kind === 'ours' ? file.bytes : 0
    const definedOnOverlay = named.has(overlay)
    if (verdicts[index] === 'commit')
      await commitOffline(source, journal, disk, async step => {
        journal = await recordStep(journal, step, { target, definedOnOverlay })
      })
    await putDefinitionOnBase(source, journal, [disk])
    const mergeMs = Date.now() - started
    if (!hasStep(journal, 'clean', target))
      journal = await recordStep(journal, 'clean', { target, mergeMs, overlayBytes })
    await removeOverlay(domain, overlay, async () =>
      (await storedSources(source, domain)).has(overlay) ? "the domain's definition" : undefined,
    )
    settled.push({ target, mergeMs, overlayBytes })
  }
  await recordStep(journal, 'done')
  source.log.info({ domain, session: recoveryPoint, state, disks: settled }, 'merged, on its bases')
  return settled
}

/** The domain must be this host's to repair, and off in every sense. */
async function checkHere(source: Source, journal: Journal, state: string): Promise<void> {
  const { domain, uuid, disks } = journal.intent
  const byHand = disks.map(({ overlay }) => `qemu-img commit -f qcow2 ${overlay}; rm ${overlay}`)
  if (state === 'unknown to libvirt')
    await needsOperator(source, journal, `libvirt does not know domain ${domain} any more`, [
      'if it was renamed or undefined, merge its disks by hand:',
      ...byHand,
      `then move ${journal.file} away`,
    ])
  if (/migrated/.test(state))
    await needsOperator(
      source,
      journal,
      `domain ${domain} has gone to another host, with its disks on overlays`,
      [
        'there, merge each disk: virsh blockcommit DOMAIN TARGET --active --pivot --base BASE --top OVERLAY',
        `then move ${journal.file} away`,
      ],
    )
  const definition = readDomainXml(await readXml(source.virsh, domain, ['--inactive']))
  if (definition.uuid !== uuid)
    await needsOperator(source, journal, `domain ${domain} is another one now (its UUID changed)`, [
      'merge the disks of the old one by hand:',
      ...byHand,
      `then move ${journal.file} away`,
    ])
  for (const file of disks.flatMap(({ base, overlay }) => [base, overlay])) {
    const [opener] = await openersOf(file)
    if (opener)
      throw new Failure(
        'MERGE_FAILED',
        `libvirt says that ${domain} is ${state}, but ${opener.command} (pid ${opener.pid}) has ${file} open`,
        { remedy: `wait until that process has ended, then: clone-server recover ${domain}` },
      )
  }
}

/** @param sources images that the domain's stored XMLs name */
async function judge(
  journal: Journal,
  disk: SessionDiskRecord,
  sources: ReadonlyMap<string, string>,
): Promise<Verdict> {
  const { target, overlay } = disk
  const named = sources.has(overlay)
  let stacked = false
  // A raw image is never asked: what it says of itself is the guest's word.
  for (const [image, format] of sources)
    stacked ||= format === 'qcow2' && (await liesOn(image, overlay))
  const file = await inspectOverlay(disk)
  const frozenAt = lastStep(journal, 'frozen')?.baseWritten?.[target]
  const written = await baseWrittenMs(disk)
  // Before `frozen` was recorded the overlay itself tells: what wrote to it last stopped writing to the base before.
  const since = frozenAt ?? (file.kind === 'ours' ? file.writtenMs : undefined)
  return verdictOn({
    overlay: file.kind,
    holdsData: file.kind === 'ours' && !named && (await holdsData(disk)),
    named,
    stacked,
    snapshot: hasStep(journal, 'snapshot'),
    frozen: hasStep(journal, 'frozen'),
    merge: hasStep(journal, 'merge', target),
    pivot: lastStep(journal, 'pivot', target)?.definedOnOverlay === true,
    clean: hasStep(journal, 'clean', target),
    baseWritten: written === undefined || since === undefined ? undefined : written > since,
  })
}

async function reportUndecided(
  source: Source,
  journal: Journal,
  disk: SessionDiskRecord,
  verdict: Verdict,
): Promise<void> {
  const { domain, instant } = journal.intent
  const { target, base, overlay } = disk
  if (verdict === 'commit' || verdict === 'delete') return
  const what = {
    gone: `the overlay of disk ${target} of ${domain} is gone: what its guest wrote after ${instant} was in ${overlay}`,
    stacked: `disk ${target} of ${domain}: another image lies on its overlay ${overlay}, and the domain is off`,
    strange: `${overlay} is not the overlay of disk ${target} of ${domain} any more`,
    'two histories': `disk ${target} of ${domain}: its guest wrote to ${overlay}, and ${base} was written to as well: nothing says which is later`,
  }[verdict]
  const commands = {
    gone: [
      `put ${overlay} back (is its file system mounted?), then: clone-server recover ${domain}`,
      `or, to go on without it: move ${journal.file} away, and put disk ${target} on ${base} in virsh edit ${domain}`,
    ],
    stacked: [
      `virsh start --paused ${domain}; clone-server recover ${domain}; virsh destroy ${domain} (if it is to be off)`,
    ],
    strange: [`qemu-img info ${overlay}; its base should be ${base}`],
    'two histories': [
      `if ${domain} has not run since ${instant} on ${base} alone: qemu-img commit -f qcow2 ${overlay}; rm ${overlay}; clone-server recover ${domain}`,
      ...twoHistories(journal, disk),
    ],
  }[verdict]
  await needsOperator(source, journal, what, commands)
}
