// What is to be done with the overlay of a domain that is off: one table, from what is known to one word. An overlay that may hold
// what a guest wrote is committed or reported, never dropped; a base that was written to since is never overwritten.

import type { OverlayFile } from './overlay.ts'

/** What is known of one disk of a domain that is off. */
export interface DiskFacts {
  readonly overlay: OverlayFile['kind']
  /** Whether the overlay has clusters of its own; only looked at where it matters. */
  readonly holdsData: boolean
  /** A stored XML names the overlay. */
  readonly named: boolean
  /** Another image of the domain lies on the overlay: an admin's snapshot, stacked on ours. */
  readonly stacked: boolean
  /** Steps of the journal: the snapshot may have been taken; it was seen to be taken. */
  readonly snapshot: boolean
  readonly frozen: boolean
  /** A merge was begun. */
  readonly merge: boolean
  /**
   * A pivot was begun while the definition named the overlay, and the overlay was not written to since: a definition that does
   * not name it any more is libvirt's word for the pivot's end.
   */
  readonly pivot: boolean
  readonly clean: boolean
  /** The directory of the overlay is another one than it was: a file system that is not mounted. */
  readonly elsewhere: boolean
  /** The base was written to after it was frozen; undefined when nothing tells. */
  readonly baseWritten: boolean | undefined
}

export type Verdict =
  /** Merge it into the base, then put the definition on the base. */
  | 'commit'
  /** It holds nothing that the base lacks: put the definition on the base, delete it. */
  | 'delete'
  | 'gone'
  | 'strange'
  /** Only QEMU can merge it from under what lies on it. */
  | 'stacked'
  /** Guest data on both sides, and nothing says which is later. */
  | 'two histories'

export function verdictOn(facts: DiskFacts): Verdict {
  if (facts.clean || (facts.overlay === 'blank' && !facts.stacked)) return 'delete'
  if (facts.overlay === 'missing') return verdictOnMissing(facts)
  if (facts.overlay === 'strange' || facts.overlay === 'blank') return 'strange'
  if (facts.stacked) return 'stacked'
  // Our own merge writes to the base as well, and before it was frozen so did the guest; somebody who repaired the base alone
  // is not overwritten.
  const repaired = facts.frozen && facts.baseWritten === true && !facts.merge
  if (facts.named) return repaired ? 'two histories' : 'commit'
  if (!facts.snapshot || facts.pivot || !facts.holdsData) return 'delete'
  if (facts.merge) return 'two histories'
  return facts.baseWritten === false ? 'commit' : 'two histories'
}

function verdictOnMissing({ named, frozen, pivot, baseWritten, elsewhere }: DiskFacts): Verdict {
  if (named || (elsewhere && frozen && !pivot)) return 'gone'
  // Never made, merged to its end, or merged by hand, which wrote to the base.
  return !frozen || pivot || baseWritten !== false ? 'delete' : 'gone'
}
