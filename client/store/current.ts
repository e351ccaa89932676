// `current`: a symlink derived from state.json, repaired whenever a crash fell between the two.

import { readlink, rename, rm, symlink } from 'node:fs/promises'
import path from 'node:path'
import { fsyncPath } from '../../shared/host/durable.ts'
import { isUndamaged, type Sound } from './generation.ts'
import type { Layout } from './layout.ts'
import type { State } from './state.ts'
import { isAllWhole } from './view.ts'

/** The generation that `current` must show, never a damaged one. @param sound oldest first */
export function selectedGeneration(
  state: Pick<State, 'selected'>,
  sound: readonly Sound[],
): Sound | undefined {
  const undamaged = sound.filter(isUndamaged)
  return state.selected === 'newest'
    ? undamaged.at(-1)
    : undamaged.find(({ generation }) => generation.seq === state.selected)
}

/** Where `current` must point, relative to the clone; undefined when it must be absent: whoever follows it wants images. */
async function wantedLink(state: State, sound: readonly Sound[]): Promise<string | undefined> {
  const selected = selectedGeneration(state, sound)
  return selected && (await isAllWhole(selected))
    ? path.join('generations', selected.id)
    : undefined
}

export async function isCurrentRight(
  layout: Layout,
  state: State,
  sound: readonly Sound[],
): Promise<boolean> {
  const present = await readlink(layout.current).catch(() => undefined)
  return present === (await wantedLink(state, sound))
}

/** Makes `current` show the selected generation, durably; without one it is absent. Only under the clone's lock. */
export async function repairCurrent(
  layout: Layout,
  state: State,
  sound: readonly Sound[],
): Promise<void> {
  if (await isCurrentRight(layout, state, sound)) return
  const wanted = await wantedLink(state, sound)
  if (wanted === undefined) {
    await rm(layout.current, { force: true })
  } else {
    const beside = `${layout.current}.new`
    await rm(beside, { force: true })
    await symlink(wanted, beside)
    await rename(beside, layout.current)
  }
  await fsyncPath(layout.dir)
}
