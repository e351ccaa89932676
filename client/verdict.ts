// What a verify found, kept: damage beside the generation, which then counts no more; or that all of it was read back.

import type { BadPlace } from './copy/check.ts'
import { offsetOf } from './copy/runs.ts'
import { repairCurrent } from './store/current.ts'
import { clearDamage, markDamaged } from './store/damage.ts'
import { recordFullRead } from './store/full-read.ts'
import { soundGenerations, type Sound } from './store/generation.ts'
import type { Layout } from './store/layout.ts'
import { readState } from './store/state.ts'
import { viewOf } from './store/view.ts'
import { problemsOf, type VerifiedDisk } from './verify.ts'

export interface Verdict {
  readonly sound: boolean
  /** Generations that were good until now and have bytes in the same bad places; they are damaged, too. */
  readonly alsoDamaged: readonly string[]
}

/**
 * Records the result of reading a whole generation, and moves `current` off a damaged one. Only under the clone's lock.
 * @param generations all that are sound. Rejects when something could not be recorded
 */
export async function keepVerdict(
  layout: Layout,
  generations: readonly Sound[],
  found: Sound,
  disks: readonly VerifiedDisk[],
): Promise<Verdict> {
  const problems = disks.flatMap(problemsOf)
  if (problems.length === 0) {
    if (found.damaged !== undefined) await clearDamage(found.dir)
    // Of what came from the page cache nothing was proven.
    if (disks.every(({ cached }) => cached === undefined)) await recordFullRead(layout, found)
  } else {
    await markDamaged(found.dir, problems)
  }
  const alsoDamaged = problems.length === 0 ? [] : await markSharers(generations, found, disks)
  await repairCurrent(layout, await readState(layout), await soundGenerations(layout.dir))
  return { sound: problems.length === 0, alsoDamaged }
}

/** Marks every generation that is not yet known to be damaged and reads a bad place as its own. */
async function markSharers(
  generations: readonly Sound[],
  found: Sound,
  disks: readonly VerifiedDisk[],
): Promise<string[]> {
  const marked: string[] = []
  for (const other of generations) {
    if (other.id === found.id || other.damaged !== undefined) continue
    const shared: string[] = []
    for (const { target, bad, manifest } of disks) {
      // Lines that are not the right ones say nothing of the bytes.
      if (manifest !== undefined) continue
      const [first] = await sharedPlaces(generations, other, target, bad)
      if (first) shared.push(`${target}: ${offsetOf(first)} of ${first.file}`)
    }
    if (shared.length === 0) continue
    await markDamaged(other.dir, shared)
    marked.push(other.id)
  }
  return marked
}

/** Of the bad places, those that hold bytes of another generation, too. */
export async function sharedPlaces(
  generations: readonly Sound[],
  other: Sound,
  target: string,
  bad: readonly BadPlace[],
): Promise<BadPlace[]> {
  const disk = other.generation.disks.find(one => one.target === target)
  if (!disk || bad.length === 0) return []
  try {
    await using view = await viewOf(generations, other, disk)
    const files = new Set(view.files)
    return bad.filter(
      ({ file, byte, chunk }) =>
        files.has(file) && byte < disk.size && view.runs(chunk, 1)[0]?.file === file,
    )
  } catch {
    // What cannot be read at all is found when it is verified itself.
    return []
  }
}
