// What a pull will read, and why. Pure: sizes in, a plan out; no files, no clock, no network.

import { chunkCount } from '../shared/chunks.ts'
import { formatSize } from '../shared/quantities.ts'

export { CHUNK_SIZE, chunkCount, chunkLength } from '../shared/chunks.ts'

export interface DiskToPull {
  readonly target: string
  readonly format: 'raw' | 'qcow2'
  /** Bytes. */
  readonly size: number
}

export interface DiskPlan extends DiskToPull {
  /**
   * `full`: every byte is read, but for holes. `hash`: the source's digests tell which chunks are. `changed`: what the source
   * recorded to have changed since the basis, and nothing else.
   */
  readonly kind: 'full' | 'hash' | 'changed'
  readonly reason: string
  readonly chunks: number
  /** The generation whose image the new one is built upon: chunks that are the same there are not written. */
  readonly basis?: string
}

/** What the clone already has of a disk. */
export interface Held extends DiskToPull {
  /** The generation that it is of. */
  readonly id: string
  /** Damage is known that may be in it, so that its digests say nothing of its bytes. */
  readonly damaged: boolean
}

/** Bytes that changed since a disk's basis, or why that is not known. */
export type Change = { readonly bytes: number } | { readonly reason: string }

export interface Means {
  /** Whether the source gives digests of what it froze. */
  readonly digests: boolean
  /** What is known of changes since each disk's basis; undefined before that is asked: `changed` then says that it is worth it. */
  readonly changes?: ReadonlyMap<string, Change> | undefined
  /** Why everything is compared although changes may be recorded: `--compare`, one is due, or tracking is not trusted. */
  readonly compare?: string | undefined
  /** `--full`: what the clone has is not trusted. */
  readonly full: boolean
  /** The digests must be equal before anything is published. */
  readonly verify: 'readback' | 'source'
  /** The recovery point of an interrupted pull whose bytes may still be of use. */
  readonly donor: string | undefined
}

/** Bytes of all disks. */
export function sizeOf(disks: readonly Pick<DiskToPull, 'size'>[]): number {
  return disks.reduce((sum, { size }) => sum + size, 0)
}

/**
 * The cheapest right way for each disk.
 * @param held the disks of the newest generation; undefined when there is none
 */
export function planPull(
  disks: readonly DiskToPull[],
  held: readonly Held[] | undefined,
  means: Means,
): DiskPlan[] {
  return disks.map(disk => {
    const before = held?.find(one => one.target === disk.target)
    const basis = before?.format === disk.format ? before : undefined
    const { kind, reason } = wayFor(disk, held !== undefined, before, means)
    const { target, format, size } = disk
    const plan = { target, format, size, kind, reason, chunks: chunkCount(size) }
    return basis === undefined ? plan : { ...plan, basis: basis.id }
  })
}

function wayFor(
  disk: DiskToPull,
  heldAny: boolean,
  before: Held | undefined,
  { digests, full, verify, donor, changes, compare }: Means,
): Pick<DiskPlan, 'kind' | 'reason'> {
  const known = before?.format === disk.format && !before.damaged
  const why = !heldAny
    ? 'first pull'
    : !before
      ? 'the disk is new'
      : before.format !== disk.format
        ? `its format was ${before.format}`
        : before.damaged
          ? `damage is known that may be in ${before.id}, too`
          : before.size !== disk.size
            ? `compared with ${before.id}, where its size was ${before.size} bytes`
            : `compared with ${before.id}`
  if (full && digests && verify === 'source')
    return { kind: 'hash', reason: '--full was given; verify: source' }
  if (full) return { kind: 'full', reason: known ? '--full was given' : why }
  if (!digests)
    return { kind: 'full', reason: known ? 'the source is too old to give digests' : why }
  if (known) return knownWay(disk, before.id, why, verify, compare, changes)
  if (donor !== undefined) return { kind: 'hash', reason: `${why}; ${donor} was interrupted` }
  if (verify === 'source') return { kind: 'hash', reason: `${why}; verify: source` }
  return { kind: 'full', reason: why }
}

/** A disk whose basis can be trusted: what changed, where that is known and all that is asked for; else by hash. */
function knownWay(
  { target }: DiskToPull,
  basis: string,
  why: string,
  verify: Means['verify'],
  compare: string | undefined,
  changes: Means['changes'],
): Pick<DiskPlan, 'kind' | 'reason'> {
  if (verify === 'source') return { kind: 'hash', reason: `${why}; verify: source` }
  if (compare !== undefined) return { kind: 'hash', reason: `${why}; ${compare}` }
  if (changes === undefined) return { kind: 'changed', reason: why }
  const change = changes.get(target) ?? { reason: 'changes are not recorded' }
  return 'bytes' in change
    ? { kind: 'changed', reason: `${formatSize(change.bytes)} changed since ${basis}` }
    : { kind: 'hash', reason: `${why}; ${change.reason}` }
}
