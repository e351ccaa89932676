// Retention: which generations may go, and their removal in two steps so that no crash leaves half of one.

import { readdir, rename, rm } from 'node:fs/promises'
import path from 'node:path'
import { fsyncPath } from '../../shared/host/durable.ts'
import { selectedGeneration } from './current.ts'
import { imagesOf, isUndamaged, soundGenerations, type Sound } from './generation.ts'
import type { Layout } from './layout.ts'
import type { State } from './state.ts'
import { usersOf } from './users.ts'

export interface Retained {
  readonly id: string
  readonly seq: number
  /** Why it goes, or why it stays although it is beyond keep.last. */
  readonly why: string
}
export interface PrunePlan {
  readonly remove: readonly Retained[]
  readonly spared: readonly Retained[]
}

/** Facts about one generation that retention needs; `hold` is why it may not go. */
export interface Candidate {
  readonly id: string
  readonly seq: number
  readonly hold: string | undefined
  readonly damaged?: boolean
}

/**
 * Pure: everything older than the newest `keepLast` undamaged ones goes, except what is held. A damaged one is never
 * counted, so that none that is good goes in its favour. @param candidates oldest first
 */
export function planPrune(candidates: readonly Candidate[], keepLast: number): PrunePlan {
  const beyond = candidates.slice(0, firstKept(candidates, keepLast))
  const remove: Retained[] = []
  const spared: Retained[] = []
  for (const { id, seq, hold } of beyond)
    if (hold === undefined) remove.push({ id, seq, why: `beyond keep.last ${keepLast}` })
    else spared.push({ id, seq, why: hold })
  return { remove, spared }
}

/** Where the newest `keepLast` undamaged ones begin; 0 when there are no more than these. */
function firstKept(candidates: readonly Pick<Candidate, 'damaged'>[], keepLast: number): number {
  const undamaged = candidates.flatMap(({ damaged = false }, at) => (damaged ? [] : [at]))
  return undamaged.at(-Math.max(1, keepLast)) ?? 0
}

/** Prunes a clone under its lock. Broken generations are never touched: a person has to look. */
export async function prune(
  layout: Layout,
  state: State,
  keepLast: number,
  dryRun = false,
): Promise<PrunePlan> {
  const sound = await soundGenerations(layout.dir)
  const selected = selectedGeneration(state, sound)
  const candidates: Candidate[] = []
  const damaged = sound.map(found => ({ damaged: !isUndamaged(found) }))
  const kept = firstKept(damaged, keepLast)
  for (const [at, found] of sound.entries()) {
    // Whoever uses the newest ones does not matter: they stay anyway.
    const hold = at >= kept ? undefined : found === selected ? 'selected' : await holdOf(found)
    candidates.push({ id: found.id, seq: found.generation.seq, hold, ...damaged[at] })
  }
  const plan = planPrune(candidates, keepLast)
  if (dryRun) return plan
  for (const { id } of plan.remove) {
    // Renamed first: what is half removed is in staging/, where the next run clears it away.
    const doomed = path.join(layout.staging, `${id}.doomed`)
    await rename(path.join(layout.generations, id), doomed)
    await fsyncPath(layout.generations)
    await rm(doomed, { recursive: true, force: true })
  }
  return plan
}

/** A file in `<generation>/claims/` holds it, whatever made it; so does anyone who has its images open. */
async function holdOf(found: Sound): Promise<string | undefined> {
  const claims = await readdir(path.join(found.dir, 'claims')).catch(() => [])
  if (claims.length > 0) return `claimed: ${claims.sort().join(', ')}`
  const [user] = await usersOf(imagesOf(found))
  return user && `in use: ${user}`
}
