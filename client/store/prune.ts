// Retention: which generations may go, and their removal in two steps so that no crash leaves half of one.

import { claimReason } from './claims.ts'
import { selectedGeneration } from './current.ts'
import { imagesOf, isSound, isUndamaged, listGenerations, type Sound } from './generation.ts'
import { datedOf, describePolicy, keepReasons, type Dated, type KeepPolicy } from './keep.ts'
import type { Layout } from './layout.ts'
import { neededBy, removeGeneration } from './remove.ts'
import type { State } from './state.ts'
import { usersOf } from './users.ts'

export interface Retained {
  readonly id: string
  /** Unset for a broken one. */
  readonly seq?: number
  /** Why it is kept, why it goes, or why it stays although the policy does not want it. */
  readonly why: string
}
export interface PrunePlan {
  readonly keep: readonly Retained[]
  readonly remove: readonly Retained[]
  readonly spared: readonly Retained[]
}

/** Facts about one generation that retention needs. */
export interface Candidate extends Dated {
  readonly damaged: boolean
}

/**
 * Pure: what the policy does not want goes, except what is held. Damaged ones are never counted, so that none that is good
 * goes in their favour; they go once they are older than all that is kept.
 * @param candidates in any order. @param holds id -> why it may not go
 */
export function planPrune(
  candidates: readonly Candidate[],
  policy: KeepPolicy,
  holds: ReadonlyMap<string, string> = new Map(),
): PrunePlan {
  const kept = keepReasons(
    candidates.filter(({ damaged }) => !damaged),
    policy,
  )
  const oldestKept = Math.min(...candidates.filter(({ id }) => kept.has(id)).map(({ seq }) => seq))
  const plan = { keep: [] as Retained[], remove: [] as Retained[], spared: [] as Retained[] }
  for (const { id, seq, damaged } of candidates.toSorted((a, b) => a.seq - b.seq)) {
    const why = kept.get(id)
    const hold = holds.get(id)
    if (why !== undefined) plan.keep.push({ id, seq, why })
    else if (damaged && (kept.size === 0 || seq > oldestKept))
      plan.keep.push({ id, seq, why: 'damaged, but not older than all that is kept' })
    else if (hold !== undefined) plan.spared.push({ id, seq, why: hold })
    else plan.remove.push({ id, seq, why: `beyond keep: ${describePolicy(policy)}` })
  }
  return plan
}

/** Prunes a clone under its lock. Needs no space. Broken generations are never touched: a person has to look. */
export async function prune(
  layout: Layout,
  state: State,
  policy: KeepPolicy,
  dryRun = false,
): Promise<PrunePlan> {
  const found = await listGenerations(layout.dir)
  const sound = found.filter(isSound)
  const candidates = sound.map(one => ({ ...datedOf(one), damaged: !isUndamaged(one) }))
  // Who uses those that are kept does not matter, and finding out takes long.
  const beyond = new Set(planPrune(candidates, policy).remove.map(({ id }) => id))
  const selected = selectedGeneration(state, sound)
  const holds = new Map<string, string>()
  let staying: readonly Sound[] = sound
  for (const one of sound.filter(({ id }) => beyond.has(id))) {
    const hold =
      one === selected ? 'selected' : ((await holdOf(one)) ?? (await neededBy(staying, one)))
    if (hold !== undefined) holds.set(one.id, hold)
    else staying = staying.filter(other => other !== one)
  }
  const plan = planPrune(candidates, policy, holds)
  const broken = found.flatMap(({ id, broken: why }) => (why === undefined ? [] : [{ id, why }]))
  let left: readonly Sound[] = sound
  for (const { id } of dryRun ? [] : plan.remove) {
    const doomed = left.find(one => one.id === id)
    if (doomed) await removeGeneration(layout, left, doomed)
    left = left.filter(one => one !== doomed)
  }
  return { ...plan, spared: [...plan.spared, ...broken] }
}

/** Why a generation may not go although the policy does not want it. */
async function holdOf(found: Sound): Promise<string | undefined> {
  const claimed = await claimReason(found.dir)
  if (claimed !== undefined) return claimed
  const [user] = await usersOf(imagesOf(found))
  return user && `in use: ${user.text}`
}
