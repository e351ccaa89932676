// clone list: the generations of one clone, oldest first.

import type { CloneConfig } from '../config/effective.ts'
import { claimsOf, type Claim } from '../store/claims.ts'
import { selectedGeneration } from '../store/current.ts'
import { formsOf, type DiskForm } from '../store/forms.ts'
import {
  isSound,
  isUndamaged,
  listGenerations,
  type Found,
  type Generation,
} from '../store/generation.ts'
import { checkHistory, type HistoryProblem } from '../store/history.ts'
import { datedOf, keepReasons } from '../store/keep.ts'
import { layoutOf } from '../store/layout.ts'
import { readState } from '../store/state.ts'
import { verifiedOf, type LastVerified } from '../store/verified.ts'
import { tidy } from './tidy.ts'

export interface Listed {
  readonly id: string
  readonly dir: string
  readonly current: boolean
  readonly claims: readonly Claim[]
  readonly generation?: Generation
  readonly disks?: readonly DiskForm[]
  readonly verified?: LastVerified
  /** Why the policy keeps it; unset when the next prune may remove it. */
  readonly kept?: string
  /** Why it cannot be used. */
  readonly broken?: string
  /** What `clone verify` found. */
  readonly damaged?: string
}

export async function listCommand(
  clone: CloneConfig,
): Promise<{ generations: Listed[]; historyProblems: readonly HistoryProblem[] }> {
  await tidy(clone).catch(() => undefined)
  const found = await listGenerations(clone.dir)
  const layout = layoutOf(clone.dir)
  const state = await readState(layout).catch(() => undefined)
  const sound = found.filter(isSound)
  const selected = state && selectedGeneration(state, sound)
  const kept = keepReasons(sound.filter(isUndamaged).map(datedOf), clone.keep)
  const generations = await Promise.all(
    found.map(async one => {
      const why = kept.get(one.id)
      return {
        ...(await describe(one)),
        current: one.id === selected?.id,
        ...(why !== undefined && { kept: why }),
      }
    }),
  )
  const { problems } = await checkHistory(layout, state?.attempts)
  return { generations, historyProblems: problems }
}

async function describe(found: Found): Promise<Omit<Listed, 'current' | 'kept'>> {
  const { id, dir, broken, damaged } = found
  const claims = await claimsOf(dir)
  if (!isSound(found)) return { id, dir, claims, ...(broken !== undefined && { broken }) }
  const { generation } = found
  const [disks, verified] = await Promise.all([formsOf(found), verifiedOf(found)])
  return {
    ...{ id, dir, claims, generation, disks, verified },
    ...(damaged !== undefined && { damaged }),
  }
}
