// After any command has run once, `current` is right again, even if a crash fell between a publish and its symlink.

import { lockClone } from '../store/guard.ts'
import type { CloneConfig } from '../config/effective.ts'
import { repairCurrent } from '../store/current.ts'
import { soundGenerations } from '../store/generation.ts'
import { layoutOf } from '../store/layout.ts'
import { readState } from '../store/state.ts'

/** Repairs `current` when the clone exists and nobody else works on it. @throws when it cannot */
export async function tidy(clone: CloneConfig): Promise<void> {
  const sound = await soundGenerations(clone.dir)
  if (sound.length === 0) return
  const layout = layoutOf(clone.dir)
  const unlock = lockClone(layout, 'status')
  try {
    await repairCurrent(layout, await readState(layout), sound)
  } finally {
    unlock()
  }
}
