// clone prune: retention on demand, for when keep was lowered or a file system is full.

import type { CloneConfig } from '../config/effective.ts'
import { lockClone } from '../store/guard.ts'
import { layoutOf } from '../store/layout.ts'
import { listGenerations, soundGenerations } from '../store/generation.ts'
import { removeStaleClaims } from '../store/claims.ts'
import { repairCurrent } from '../store/current.ts'
import { prune, type PrunePlan } from '../store/prune.ts'
import { tidyStaging } from '../store/donor.ts'
import { readState } from '../store/state.ts'
import { recover } from '../store/undo.ts'

/** @throws Failure LOCKED */
export async function pruneCommand(clone: CloneConfig, dryRun: boolean): Promise<PrunePlan> {
  if ((await listGenerations(clone.dir)).length === 0) return { keep: [], remove: [], spared: [] }
  const layout = layoutOf(clone.dir)
  const unlock = lockClone(layout, 'prune')
  try {
    if (dryRun) return await prune(layout, await readState(layout), clone.keep, true)
    await recover(layout)
    const state = await readState(layout)
    await tidyStaging(layout)
    await removeStaleClaims(await soundGenerations(clone.dir))
    const plan = await prune(layout, state, clone.keep)
    // Last: a symlink may need space, which there is only now.
    await repairCurrent(layout, state, await soundGenerations(clone.dir))
    return plan
  } finally {
    unlock()
  }
}
