// clone status: how old each clone is against its RPO. Judging is left to whoever asked; this only answers.

import { access, readdir } from 'node:fs/promises'
import path from 'node:path'
import { toFailure } from '../../shared/failures.ts'
import { isRecoveryPointId } from '../../shared/names.ts'
import type { CloneConfig } from '../config/effective.ts'
import { freshness, type Freshness } from '../freshness.ts'
import { selectedGeneration } from '../store/current.ts'
import { occupiedBy } from '../store/forms.ts'
import { lastFullRead } from '../store/full-read.ts'
import { isSound, isUndamaged, listGenerations } from '../store/generation.ts'
import { layoutOf, type Layout } from '../store/layout.ts'
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
  /** The generation that `current` shows, and whether it stays there although newer ones come. */
  readonly current?: { readonly id: string; readonly seq: number; readonly pinned: boolean }
  /** The last time that all of the clone was read back from the medium, whichever generation was the newest then. */
  readonly lastFullVerify?: {
    readonly at: string
    /** Milliseconds; 0 when this host's clock went back. */
    readonly ageMs: number
  }
  /** What a running or an interrupted pull has so far. */
  readonly staging?: { readonly recoveryPoints: readonly string[]; readonly bytes: number }
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
  const layout = layoutOf(clone.dir)
  const state = await readState(layout).catch(note)
  if (state?.distrusted)
    problems.push(
      `changes that the source records are not believed since ${state.distrusted.at}, so every pull compares all: ${state.distrusted.reason}; when you know why: clone pull ${clone.name} --trust-tracking`,
    )
  const selected = state && selectedGeneration(state, sound)
  const full = await lastFullRead(layout, sound)
  const staging = await stagingOf(layout)
  if (await exists(path.join(clone.dir, 'undo.json')))
    problems.push(
      'a pull or rollback was cut short, or runs now: undo.json is there; if nothing runs, the next clone command puts that right',
    )
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
    ...(selected && {
      current: {
        id: selected.id,
        seq: selected.generation.seq,
        pinned: state.selected !== 'newest',
      },
    }),
    ...(full && {
      lastFullVerify: {
        at: full.toISOString(),
        ageMs: Math.max(0, Date.now() - full.getTime()),
      },
    }),
    ...(staging && { staging }),
    ...(state && { role: state.role, failures: state.failures, lastAttempt: state.lastAttempt }),
    problems,
  }
}

async function stagingOf({ staging }: Layout): Promise<CloneStatus['staging'] | undefined> {
  const names = await readdir(staging).catch((): string[] => [])
  if (names.length === 0) return undefined
  return { recoveryPoints: names.filter(isRecoveryPointId), bytes: await occupiedBy(staging) }
}

async function exists(file: string): Promise<boolean> {
  return access(file).then(
    () => true,
    (error: unknown) => (error as NodeJS.ErrnoException).code !== 'ENOENT',
  )
}
