// clone verify: re-reads generations against their manifests, names what differs, and repairs it when asked to.

import { Cleanup } from '../../shared/cleanup.ts'
import { Failure, worstExit } from '../../shared/failures.ts'
import type { Watcher } from '../attempt.ts'
import type { CloneConfig } from '../config/effective.ts'
import { openPool } from '../copy/pool.ts'
import { chunkCount } from '../plan.ts'
import { checkRepairable, repair, type Repaired } from '../repair.ts'
import { chooseGeneration } from '../store/choose.ts'
import { ofStore } from '../store/failure.ts'
import { isSound, listGenerations, type Found, type Sound } from '../store/generation.ts'
import { lockClone } from '../store/guard.ts'
import { layoutOf } from '../store/layout.ts'
import { recover } from '../store/undo.ts'
import { keepVerdict } from '../verdict.ts'
import { problemsOf, sizeOf, verifyGeneration, type VerifiedDisk } from '../verify.ts'

export type { VerifiedDisk } from '../verify.ts'

/** `repair`: as `bytes`, and what is bad is set right. */
export type Manner = 'bytes' | 'repair'

export interface Verified {
  readonly clone: string
  readonly id: string
  readonly disks: readonly VerifiedDisk[]
  readonly sound: boolean
  /** Why its generation.json cannot be used; nothing of it was read then. */
  readonly broken?: string
  /** Generations that have bytes in the same bad places. */
  readonly alsoDamaged?: readonly string[]
  readonly repaired?: Repaired
  /** Why the result could not be recorded; unset when it was. */
  readonly unrecorded?: Failure
}

/**
 * Damage is recorded beside the generation, which then counts no more until a verify finds nothing wrong.
 * @param which a recovery point's id or a seq; the newest when undefined
 * @throws Failure USAGE, LOCKED, INTEGRITY for a broken generation.json; of a repair also UNSAFE, SPACE, STANDBY_IO
 */
export async function verifyCommand(
  clone: CloneConfig,
  which: string | undefined,
  signal: AbortSignal,
  watcher: Watcher,
  manner: Manner = 'bytes',
): Promise<Verified> {
  const choose = (found: readonly Found[]): Sound[] => [chooseGeneration(clone.name, found, which)]
  const [verified] = await verifyThose(clone, choose, signal, watcher, manner)
  if (!verified) throw new Error('nothing was chosen')
  return verified
}

/** Every generation of a clone, oldest first, one after the other. @throws as verifyCommand; never for a broken one */
export function verifyAll(
  clone: CloneConfig,
  signal: AbortSignal,
  watcher: Watcher,
  manner: Manner = 'bytes',
): Promise<Verified[]> {
  return verifyThose(clone, found => found, signal, watcher, manner)
}

async function verifyThose(
  clone: CloneConfig,
  choose: (found: readonly Found[]) => readonly Found[],
  signal: AbortSignal,
  watcher: Watcher,
  manner: Manner,
): Promise<Verified[]> {
  await using cleanup = new Cleanup()
  cleanup.defer(() => watcher.done())
  // Without a lock first, so that a wrong name makes no folder.
  if (choose(await listGenerations(clone.dir)).length === 0) return []
  const layout = layoutOf(clone.dir)
  cleanup.defer(lockClone(layout, 'verify'))
  await recover(layout, signal)
  // Chosen again: before the lock a pull may have published or pruned.
  const found = await listGenerations(clone.dir)
  const chosen = choose(found)
  if (manner === 'repair') await checkRepairable(layout, found.filter(isSound))
  const results: Verified[] = []
  for (const one of chosen) {
    const { id, broken } = one
    if (one.generation) results.push(await bytesOf(one))
    else results.push({ clone: clone.name, id, disks: [], sound: false, broken: broken ?? '' })
  }
  return results

  async function bytesOf(one: Sound): Promise<Verified> {
    // Listed anew: verifying the one before may have found others damaged, or healed them.
    const generations = (await listGenerations(clone.dir)).filter(isSound)
    const now = generations.find(({ id }) => id === one.id) ?? one
    const chunks = now.generation.disks.reduce((sum, { size }) => sum + chunkCount(size), 0)
    await using pool = openPool(chunks)
    watcher.phase('verify', sizeOf(now))
    const onProgress = (bytes: number): void => watcher.progress(bytes)
    const reader = { generations, pool, signal, onProgress }
    const disks = await verifyGeneration(now, reader)
    const result = { clone: clone.name, id: now.id, disks }
    const first = await kept(generations, now, disks)
    if (first.sound || manner !== 'repair') return { ...result, ...first }

    const marked = (await listGenerations(clone.dir)).filter(isSound)
    const again = marked.find(({ id }) => id === now.id) ?? now
    const tell = {
      again: (bytes: number) => watcher.phase('verify', bytes),
      note: (text: string) => watcher.note?.(text),
    }
    const mended = await repair(
      clone,
      layout,
      again,
      disks,
      { ...reader, generations: marked },
      tell,
    )
    const verdict = await kept(marked, again, mended.disks)
    return { ...result, ...mended, ...verdict }
  }

  async function kept(
    generations: readonly Sound[],
    one: Sound,
    disks: readonly VerifiedDisk[],
  ): Promise<Pick<Verified, 'sound' | 'alsoDamaged' | 'unrecorded'>> {
    let alsoDamaged: readonly string[] = []
    const unrecorded = await recorded(clone.dir, async () => {
      alsoDamaged = (await keepVerdict(layout, generations, one, disks)).alsoDamaged
    })
    const sound = disks.flatMap(problemsOf).length === 0
    return { sound, ...(alsoDamaged.length > 0 && { alsoDamaged }), ...unrecorded }
  }
}

/** @returns why something could not be recorded */
async function recorded(
  dir: string,
  record: () => Promise<void>,
): Promise<Pick<Verified, 'unrecorded'>> {
  try {
    await record()
    return {}
  } catch (error) {
    return { unrecorded: ofStore(dir, error) }
  }
}

/** What went wrong with one generation, each with the next command to type. */
export function failuresOf({ clone, id, sound, unrecorded, repaired }: Verified): Failure[] {
  const failures: Failure[] = []
  if (repaired?.failure) failures.push(repaired.failure)
  if (unrecorded !== undefined)
    failures.push(
      new Failure(
        unrecorded.code === 'SPACE' ? 'SPACE' : 'STANDBY_IO',
        `what was found of generation ${id} could not be recorded: ${unrecorded.message}`,
        { cause: unrecorded, remedy: unrecorded.remedy },
      ),
    )
  if (!sound) {
    const remedy = repaired
      ? `pull again: clone pull ${clone}; older generations: clone list ${clone}`
      : `repair it: clone verify --repair ${clone} ${id}; or pull again: clone pull ${clone}`
    failures.push(new Failure('INTEGRITY', `generation ${id} is damaged`, { remedy }))
  }
  return failures
}

/** The worst of all that went wrong decides. */
export const exitOf = (results: readonly Verified[]): number =>
  worstExit(results.flatMap(failuresOf).map(({ exit }) => exit))
