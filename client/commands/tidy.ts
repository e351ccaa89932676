// After any command has run once, a clone is a complete generation again, and `current` shows it.

import type { CloneConfig } from '../config/effective.ts'
import { hasStaleClaims, removeStaleClaims } from '../store/claims.ts'
import { isCurrentRight, repairCurrent } from '../store/current.ts'
import { soundGenerations } from '../store/generation.ts'
import { layoutOf } from '../store/layout.ts'
import { readState } from '../store/state.ts'
import { exists } from '../store/view.ts'

/**
 * Ends an exchange that was cut short, removes claims of processes that are gone, and repairs `current`, if nobody else works
 * on the clone.
 * @throws Failure LOCKED, and whatever keeps it from being done
 */
export async function tidy(clone: CloneConfig): Promise<void> {
  const layout = layoutOf(clone.dir)
  // Looked at without the lock first, so that asking for the status never gets in the way of a pull.
  if (!(await exists(layout.undo))) {
    const sound = await soundGenerations(clone.dir)
    if (sound.length === 0) return
    const stale = await hasStaleClaims(sound)
    if (!stale && (await isCurrentRight(layout, await readState(layout), sound))) return
  }
  // Loaded only now: they are hardly ever needed, and would make every `status` wait for them.
  const { lockClone } = await import('../store/guard.ts')
  const { recover } = await import('../store/undo.ts')
  const unlock = lockClone(layout, 'status')
  try {
    await recover(layout)
    const found = await soundGenerations(clone.dir)
    await removeStaleClaims(found)
    await repairCurrent(layout, await readState(layout), found)
  } finally {
    unlock()
  }
}
