// Settles a domain that is off: no QEMU of it runs, so its overlays are committed by qemu-img and its definition is put back. The
// domain is left off.

import { Failure } from '../../shared/failures.ts'
import { openersOf } from '../../shared/host/openers.ts'
import { readDomainXml } from '../libvirt/domain-xml.ts'
import { findQemu } from '../libvirt/qemu-process.ts'
import { libvirtView } from '../libvirt/view.ts'
import type { Source } from '../source.ts'
import { putDefinitionOnBase, storedSources } from './definition.ts'
import { isClean, recordStep, type Journal } from './journal.ts'
import { judge, reportUndecided } from './judge.ts'
import { commitOffline } from './offline.ts'
import { inspectOverlay, removeOverlay } from './overlay.ts'
import { readXml } from './preflight.ts'
import type { SettledDisk } from './session.ts'
import { needsOperator } from './stuck.ts'
import type { Verdict } from './verdict.ts'

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
    // Between the commit, which holds QEMU's locks, and here it could be started, on the overlay.
    if ((await findQemu(journal.intent.uuid)) || (await libvirtView(source.virsh, domain)).active)
      throw new Failure('MERGE_FAILED', `domain ${domain} was started while it was merged`)
    const mergeMs = Date.now() - started
    if (!isClean(journal, target))
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
