// clone claim, clone release: hold a generation against prune and rollback while something uses it, and let it go.

import type { CloneConfig } from '../config/effective.ts'
import { chooseGeneration } from '../store/choose.ts'
import { claim, release, removeStaleClaims } from '../store/claims.ts'
import { ofStore } from '../store/failure.ts'
import { listGenerations, type Sound } from '../store/generation.ts'
import { lockClone } from '../store/guard.ts'
import { layoutOf } from '../store/layout.ts'
import { recover } from '../store/undo.ts'

export interface Claimed {
  readonly clone: string
  readonly id: string
  readonly seq: number
  readonly purpose: string
  /** The generation's folder, whose images are now held. */
  readonly dir: string
}

/** @param which a recovery point or a seq. @throws Failure USAGE, LOCKED, UNSAFE when it is claimed for that already */
export async function claimCommand(
  clone: CloneConfig,
  which: string,
  purpose: string,
): Promise<Claimed> {
  return change(clone, which, purpose, claim)
}

/** @param which a recovery point or a seq. @throws Failure USAGE when there is no such claim; LOCKED, UNSAFE */
export async function releaseCommand(
  clone: CloneConfig,
  which: string,
  purpose: string,
): Promise<Claimed> {
  return change(clone, which, purpose, release)
}

async function change(
  clone: CloneConfig,
  which: string,
  purpose: string,
  how: (found: Sound, purpose: string) => Promise<void>,
): Promise<Claimed> {
  const choose = async (): Promise<Sound> =>
    chooseGeneration(clone.name, await listGenerations(clone.dir), which)
  await choose()
  const layout = layoutOf(clone.dir)
  const unlock = lockClone(layout, how === claim ? 'claim' : 'release')
  try {
    // Whoever claims images uses them next: nothing may be left to be written to them.
    await recover(layout)
    // Chosen again: before the lock a prune may have removed it.
    const found = await choose()
    await removeStaleClaims([found])
    await how(found, purpose)
    const { id, dir, generation } = found
    return { clone: clone.name, id, seq: generation.seq, purpose, dir }
  } catch (error) {
    throw ofStore(clone.dir, error)
  } finally {
    unlock()
  }
}
