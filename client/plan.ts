// What a pull will read, and why. Pure: sizes in, a plan out; no files, no clock, no network.

import { chunkCount } from '../shared/chunks.ts'

export { CHUNK_SIZE, chunkCount, chunkLength } from '../shared/chunks.ts'

export interface DiskToPull {
  readonly target: string
  readonly format: 'raw' | 'qcow2'
  /** Bytes. */
  readonly size: number
}

export interface DiskPlan extends DiskToPull {
  /** `full`: every byte is read. `hash`: the source's digests tell which chunks are. (`changed` comes with tracked sources.) */
  readonly kind: 'full' | 'hash'
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

export interface Means {
  /** Whether the source gives digests of what it froze. */
  readonly digests: boolean
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
  { digests, full, verify, donor }: Means,
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
  if (known) return { kind: 'hash', reason: why }
  if (donor !== undefined) return { kind: 'hash', reason: `${why}; ${donor} was interrupted` }
  if (verify === 'source') return { kind: 'hash', reason: `${why}; verify: source` }
  return { kind: 'full', reason: why }
}
