// clone status: how old each clone is against its RPO. Judging is left to whoever asked; this only answers.

import { toFailure } from '../../shared/failures.ts'
import type { CloneConfig } from '../config/effective.ts'
import { freshness, type Freshness } from '../freshness.ts'
import { isSound, isUndamaged, listGenerations } from '../store/generation.ts'
import { layoutOf } from '../store/layout.ts'
import { readState, type State } from '../store/state.ts'
import { tidy } from './tidy.ts'

export interface CloneStatus {
  readonly clone: string
  readonly freshness: Freshness
  /** Milliseconds. */
  readonly rpoMs: number
  readonly newest?: { readonly id: string; readonly seq: number; readonly consistency: string }
  /** Those that are neither broken nor damaged. */
  readonly generations: number
  readonly role?: State['role']
  readonly failures?: number
  readonly lastAttempt?: State['lastAttempt']
  /** What is wrong with files of this clone; the other clones are answered all the same. */
  readonly problems: readonly string[]
}

export async function statusCommand(clones: readonly CloneConfig[]): Promise<CloneStatus[]> {
  return Promise.all(clones.map(statusOf))
}

async function statusOf(clone: CloneConfig): Promise<CloneStatus> {
  const problems: string[] = []
  const note = (error: unknown): undefined => {
    problems.push(toFailure(error).message)
    return undefined
  }
  await tidy(clone).catch(() => undefined)
  const found = (await listGenerations(clone.dir).catch(note)) ?? []
  for (const { id, broken, damaged } of found) {
    if (broken !== undefined) problems.push(broken)
    if (damaged !== undefined) problems.push(`generation ${id} is damaged: ${damaged}`)
  }
  const sound = found.filter(isSound).filter(isUndamaged)
  const newest = sound.at(-1)?.generation
  const state = await readState(layoutOf(clone.dir)).catch(note)
  return {
    clone: clone.name,
    freshness: freshness(newest, clone.rpoMs),
    rpoMs: clone.rpoMs,
    ...(newest && {
      newest: {
        id: newest.recoveryPoint.id,
        seq: newest.seq,
        consistency: newest.recoveryPoint.consistency,
      },
    }),
    generations: sound.length,
    ...(state && { role: state.role, failures: state.failures, lastAttempt: state.lastAttempt }),
    problems,
  }
}
