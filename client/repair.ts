// clone verify --repair: bad bytes of a generation set right from the clone itself, then from the source; then all is read again.

import { Failure, toFailure } from '../shared/failures.ts'
import type { CloneConfig } from './config/effective.ts'
import { isMediumError } from './copy/medium.ts'
import {
  fromGenerations,
  fromSource,
  mend,
  wantedOf,
  type Lost,
  type Wanted,
} from './repair-chunks.ts'
import { mendImage, mendManifests } from './repair-files.ts'
import { withSession } from './source/chunks.ts'
import type { Sound } from './store/generation.ts'
import { claimsOf } from './store/claims.ts'
import { ofStore } from './store/failure.ts'
import { checkRole, checkUnused } from './store/guard.ts'
import type { Layout } from './store/layout.ts'
import { readState } from './store/state.ts'
import { viewOf, type Disk } from './store/view.ts'
import { keepVerdict, sharedPlaces } from './verdict.ts'
import { sizeOf, verifyDisk, verifyGeneration, type Reader, type VerifiedDisk } from './verify.ts'

export interface Repaired {
  /** Manifests and images that were written anew, or given their length. */
  readonly files: readonly string[]
  /** Chunks from other generations of the clone, and from the source. */
  readonly local: number
  readonly fetched: number
  /** Chunks that are still bad, and why they could not be had. */
  readonly lost: readonly Omit<Lost, 'length'>[]
  /** Other generations that were damaged in the same places and are good again. */
  readonly healed: readonly string[]
  /** How the source's session ended; unset when there was none. */
  readonly source?: 'merged' | 'kept'
  /** What went wrong with the source. */
  readonly failure?: Failure
}

/** How a repair speaks to whoever watches, beside the reader's progress. */
export interface RepairWatcher {
  /** A new reading of so many bytes begins. */
  readonly again: (bytes: number) => void
  readonly note: (text: string) => void
}

/** The claim of a clone that has become the domain itself. */
const FAILOVER = 'failover'

/** @throws Failure UNSAFE when the clone's images may not be written */
export async function checkRepairable(layout: Layout, sound: readonly Sound[]): Promise<void> {
  checkRole(layout, await readState(layout))
  for (const { id, dir } of sound)
    if ((await claimsOf(dir)).some(({ name, stale }) => name === FAILOVER && !stale))
      throw new Failure(
        'UNSAFE',
        `generation ${id} is claimed for failover, so nothing is repaired`,
      )
  await checkUnused(layout, sound)
}

/**
 * Repairs a generation that is marked as damaged already, so that a crash leaves it so. Only under the clone's lock.
 * @param disks what is wrong with it. @returns what is still wrong with it, all of it read again
 * @throws Failure SPACE, STANDBY_IO; UNSAFE; the signal's reason
 */
export async function repair(
  clone: CloneConfig,
  layout: Layout,
  found: Sound,
  disks: readonly VerifiedDisk[],
  reader: Reader,
  watcher: RepairWatcher,
): Promise<{ disks: VerifiedDisk[]; repaired: Repaired }> {
  const { generations } = reader
  await checkRepairable(layout, generations)
  const files: string[] = []
  const wanted: Wanted[] = []
  for (const [at, disk] of found.generation.disks.entries()) {
    const before = disks[at]
    if (!before) continue
    const changed = await mendFiles(found, disk, before, reader)
    files.push(...changed)
    const { bad, manifest } = changed.length > 0 ? await verifyDisk(found, disk, reader) : before
    // A manifest that is not the right one could be that of other bytes, and would have them written over good ones.
    if (bad.length === 0 || manifest !== undefined) continue
    await using view = await viewOf(generations, found, disk)
    wanted.push(...wantedOf(view, bad))
  }

  const left = await mendLocally(found, wanted, reader)
  const fetched = left.length === 0 ? NOTHING : await fetch(clone, layout, left, reader, watcher)

  watcher.again(sizeOf(found))
  const after = await verifyGeneration(found, reader)
  const lost = stillBad(after, wanted, fetched)
  const isLost = keysOf(lost)
  const got = (chunks: readonly Wanted[]): number =>
    chunks.filter(one => !isLost.has(keyOf(one))).length
  const healed = got(wanted) === 0 ? [] : await heal(layout, found, wanted, reader, watcher)
  const { source, failure } = fetched
  const counts = { local: got(wanted) - got(left), fetched: got(left) }
  return {
    disks: after,
    repaired: {
      ...{ files, ...counts, lost, healed },
      ...(source && { source }),
      ...(failure && { failure }),
    },
  }
}

const keyOf = ({ target, chunk }: { target: string; chunk: number }): string => `${target} ${chunk}`
const keysOf = <T extends { target: string; chunk: number }>(all: readonly T[]): Map<string, T> =>
  new Map(all.map(one => [keyOf(one), one]))

/** Every chunk that is bad in the end, with the reason why it could not be had. */
function stillBad(
  after: readonly VerifiedDisk[],
  wanted: readonly Wanted[],
  { lost, failure }: Fetched,
): Repaired['lost'] {
  const [known, reasons] = [keysOf(wanted), keysOf(lost)]
  return after.flatMap(({ target, bad, manifest }) =>
    bad.map(place => {
      const key = keyOf({ target, chunk: place.chunk })
      const reason =
        manifest !== undefined
          ? 'its manifest is not the right one, so nothing tells what it must be'
          : !known.has(key)
            ? 'it went bad meanwhile'
            : (reasons.get(key)?.reason ??
              failure?.message ??
              'it was written, and reads differently')
      return { ...place, target, digest: known.get(key)?.digest ?? '', reason }
    }),
  )
}

/** @returns the files that were changed, so that the disk has to be read again */
async function mendFiles(
  found: Sound,
  disk: Disk,
  { manifest, image }: VerifiedDisk,
  reader: Reader,
): Promise<string[]> {
  const changed: string[] = []
  try {
    if (image !== undefined) changed.push(...(await mendImage(found, disk, reader.generations)))
    if (manifest !== undefined) changed.push(...(await mendManifests(found, disk, reader)))
  } catch (error) {
    // What cannot be mended stays damage; only other errors end the repair.
    if (!isMediumError(error) && toFailure(error).code !== 'INTEGRITY') throw error
  }
  return changed
}

async function mendLocally(
  found: Sound,
  wanted: readonly Wanted[],
  reader: Reader,
): Promise<Lost[]> {
  await using others = fromGenerations(reader.generations, found)
  return await mend(wanted, others.supply, reader.signal, () => undefined)
}

interface Fetched {
  readonly lost: readonly Lost[]
  readonly source?: 'merged' | 'kept' | undefined
  readonly failure?: Failure
}
const NOTHING: Fetched = { lost: [] }

/** The rest from the source. What goes wrong there is part of the result: what was had already stays. */
async function fetch(
  clone: CloneConfig,
  layout: Layout,
  wanted: readonly Wanted[],
  { signal, onProgress }: Reader,
  watcher: RepairWatcher,
): Promise<Fetched> {
  const targets = [...new Set(wanted.map(({ target }) => target))]
  const state = await readState(layout)
  const onLong = (): void => watcher.note(`${clone.name}: waiting for the source to merge`)
  let lost: Lost[] = []
  watcher.again(wanted.reduce((sum, { length }) => sum + length, 0))
  try {
    const ends = { signal, onLong }
    const source = await withSession(clone, layout, state, targets, ends, async (disks, live) => {
      lost = await mend(wanted, fromSource(disks), live, onProgress)
    })
    return { lost, source }
  } catch (error) {
    signal.throwIfAborted()
    const failure = ofStore(clone.dir, error)
    if (failure.code === 'SPACE' || failure.code === 'STANDBY_IO') throw failure
    return { lost, failure }
  }
}

/** Generations that were damaged in the same places are read, too. @returns those that are good again */
async function heal(
  layout: Layout,
  found: Sound,
  wanted: readonly Wanted[],
  reader: Reader,
  watcher: RepairWatcher,
): Promise<string[]> {
  const healed: string[] = []
  for (const other of reader.generations) {
    if (other.id === found.id || other.damaged === undefined) continue
    const shares = other.generation.disks.map(async ({ target }) => {
      const places = wanted.filter(one => one.target === target)
      return (await sharedPlaces(reader.generations, other, target, places)).length > 0
    })
    if (!(await Promise.all(shares)).includes(true)) continue
    watcher.again(sizeOf(other))
    const disks = await verifyGeneration(other, reader)
    const { sound } = await keepVerdict(layout, reader.generations, other, disks)
    if (sound) healed.push(other.id)
  }
  return healed
}
