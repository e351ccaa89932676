// clone prune: retention on demand, for when keep was lowered.

import type { CloneConfig } from '../config/effective.ts'
import { lockClone } from '../store/guard.ts'
import { layoutOf } from '../store/layout.ts'
import { soundGenerations } from '../store/generation.ts'
import { repairCurrent } from '../store/current.ts'
import { prune, type PrunePlan } from '../store/prune.ts'
import { tidyStaging } from '../store/donor.ts'
import { readState } from '../store/state.ts'

/** @throws Failure LOCKED */
export async function pruneCommand(clone: CloneConfig, dryRun: boolean): Promise<PrunePlan> {
  if ((await soundGenerations(clone.dir)).length === 0) return { remove: [], spared: [] }
  const layout = layoutOf(clone.dir)
  const unlock = lockClone(layout, 'prune')
  try {
    const state = await readState(layout)
    if (!dryRun) {
      await tidyStaging(layout)
      // Listed under the lock: a pull may have published since.
      await repairCurrent(layout, state, await soundGenerations(clone.dir))
    }
    return await prune(layout, state, clone.keepLast, dryRun)
  } finally {
    unlock()
  }
}
