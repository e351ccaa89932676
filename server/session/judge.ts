// What is known of a disk that is in no chain of QEMU's, gathered for the verdict on its overlay, and what an operator is told when
// there is none.

import type { Source } from '../source.ts'
import { hasStep, isClean, lastStep, type Journal, type SessionDiskRecord } from './journal.ts'
import {
  baseWrittenMs,
  holdsData,
  inspectOverlay,
  liesOn,
  placeOf,
  type OverlayFile,
} from './overlay.ts'
import { needsOperator, twoHistories } from './stuck.ts'
import { verdictOn, type Verdict } from './verdict.ts'

/** A pivot that is refused is given up after a minute; a guest that writes to the overlay later was never pivoted. */
const PIVOT_MS = 90_000

/** Whether a pivot was begun while the definition named the overlay, and nobody wrote to the overlay since. */
export function wasPivoted(journal: Journal, target: string, file: OverlayFile): boolean {
  const pivot = lastStep(journal, 'pivot', target)
  if (pivot?.definedOnOverlay !== true) return false
  if (file.kind === 'ours') return file.writtenMs <= Date.parse(pivot.at) + PIVOT_MS
  return file.kind !== 'strange'
}

/** Whether the overlay's directory is another one than when it was made: its file system is not mounted. */
export async function isElsewhere({ overlay, overlayPlace }: SessionDiskRecord): Promise<boolean> {
  return overlayPlace !== undefined && (await placeOf(overlay)) !== overlayPlace
}

/** Gathers what is known of one disk that no QEMU has. @param sources images that the domain's stored XMLs name, with formats */
export async function judge(
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
    pivot: wasPivoted(journal, target, file),
    clean: isClean(journal, target),
    elsewhere: await isElsewhere(disk),
    baseWritten: written === undefined || since === undefined ? undefined : written > since,
  })
}

/** Leaves to an operator what the verdict cannot decide. @throws Failure NEEDS_OPERATOR */
export async function reportUndecided(
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
