// clone list: the generations of one clone, oldest first.

import { readdir } from 'node:fs/promises'
import path from 'node:path'
import type { CloneConfig } from '../config/effective.ts'
import { selectedGeneration } from '../store/current.ts'
import { isSound, listGenerations, type Generation } from '../store/generation.ts'
import { brokenLinks } from '../store/history.ts'
import { layoutOf } from '../store/layout.ts'
import { readState } from '../store/state.ts'
import { tidy } from './tidy.ts'

export interface Listed {
  readonly id: string
  readonly dir: string
  readonly current: boolean
  readonly claims: readonly string[]
  readonly generation?: Generation
  /** Why it cannot be used. */
  readonly broken?: string
  /** What `clone verify` found. */
  readonly damaged?: string
}

export async function listCommand(
  clone: CloneConfig,
): Promise<{ generations: Listed[]; brokenHistory: number[] }> {
  await tidy(clone).catch(() => undefined)
  const found = await listGenerations(clone.dir)
  const state = await readState(layoutOf(clone.dir)).catch(() => undefined)
  const selected = state && selectedGeneration(state, found.filter(isSound))
  const generations = await Promise.all(
    found.map(async ({ id, dir, generation, broken, damaged }) => ({
      id,
      dir,
      current: id === selected?.id,
      claims: await readdir(path.join(dir, 'claims')).catch(() => []),
      ...(generation && { generation }),
      ...(broken !== undefined && { broken }),
      ...(damaged !== undefined && { damaged }),
    })),
  )
  return { generations, brokenHistory: await brokenLinks(layoutOf(clone.dir)) }
}
