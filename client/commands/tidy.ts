// After any command has run once, `current` is right again, even if a crash fell between a publish and its symlink.

import type { CloneConfig } from '../config/effective.ts'
import { isCurrentRight, repairCurrent } from '../store/current.ts'
import { soundGenerations } from '../store/generation.ts'
import { lockClone } from '../store/guard.ts'
import { layoutOf } from '../store/layout.ts'
import { readState } from '../store/state.ts'

/** Repairs `current` when it is wrong and nobody else works on the clone. @throws when it cannot */
export async function tidy(clone: CloneConfig): Promise<void> {
  const layout = layoutOf(clone.dir)
  const sound = await soundGenerations(clone.dir)
  // Looked at without the lock first, so that asking for the status never gets in the way of a pull.
  if (sound.length === 0 || (await isCurrentRight(layout, await readState(layout), sound))) return
  const unlock = lockClone(layout, 'status')
  try {
    await repairCurrent(layout, await readState(layout), await soundGenerations(clone.dir))
  } finally {
    unlock()
  }
}
