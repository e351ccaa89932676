// clone rollback: makes an older generation current, keeps the newer ones, and goes forward again.

import { Cleanup } from '../../shared/cleanup.ts'
import { Failure } from '../../shared/failures.ts'
import type { Watcher } from '../attempt.ts'
import type { CloneConfig } from '../config/effective.ts'
import { openPool } from '../copy/pool.ts'
import { CHUNK_SIZE } from '../plan.ts'
import { chooseGeneration } from '../store/choose.ts'
import { repairCurrent, selectedGeneration } from '../store/current.ts'
import { ofStore } from '../store/failure.ts'
import { isSound, listGenerations, soundGenerations, type Sound } from '../store/generation.ts'
import { lockClone } from '../store/guard.ts'
import { layoutOf } from '../store/layout.ts'
import { planRollback, rollback } from '../store/rollback.ts'
import { readState, type State } from '../store/state.ts'
import { recover } from '../store/undo.ts'

export interface RolledBack {
  readonly clone: string
  readonly dryRun: boolean
  /** What was current before; unset when nothing was. */
  readonly before?: { readonly id: string; readonly seq: number }
  readonly current: { readonly id: string; readonly seq: number; readonly dir: string }
  readonly selected: State['selected']
  /** The exchanges it took: none where generations are whole. */
  readonly steps: readonly { readonly to: string; readonly bytes: number }[]
}

/**
 * @param which a recovery point or a seq; or `newest`, after which `current` follows the pulls again
 * @throws Failure USAGE, LOCKED, UNSAFE, INTEGRITY, SPACE, STANDBY_IO; the signal's reason
 */
export async function rollbackCommand(
  clone: CloneConfig,
  which: string,
  dryRun: boolean,
  signal: AbortSignal,
  watcher: Watcher,
): Promise<RolledBack> {
  await using cleanup = new Cleanup()
  cleanup.defer(() => watcher.done())
  const layout = layoutOf(clone.dir)
  await chosen(clone, which)
  cleanup.defer(lockClone(layout, 'rollback'))
  try {
    await recover(layout, signal)
    const state = await readState(layout)
    if (state.role !== 'standby')
      throw new Failure(
        'UNSAFE',
        `${layout.dir} has the role ${state.role}, so its images stay what they are`,
      )
    const sound = await soundGenerations(layout.dir)
    await repairCurrent(layout, state, sound)
    const before = selectedGeneration(state, sound)
    // Chosen again: before the lock a pull may have published, or a prune removed it.
    const target = await chosen(clone, which)
    const selected = which === 'newest' ? which : target.generation.seq
    const plan = await planRollback(layout, target, selected)
    if (!dryRun) {
      const pool = openPool(Math.max(0, ...plan.steps.map(({ bytes }) => bytes / CHUNK_SIZE)))
      cleanup.defer(() => pool[Symbol.asyncDispose]())
      await rollback(layout, state, plan, { pool, signal, watcher })
    }
    return {
      clone: clone.name,
      dryRun,
      ...(before && { before: { id: before.id, seq: before.generation.seq } }),
      current: { id: target.id, seq: target.generation.seq, dir: target.dir },
      selected,
      steps: plan.steps.map(({ to, bytes }) => ({ to: to.id, bytes })),
    }
  } catch (error) {
    throw ofStore(clone.dir, error)
  }
}

async function chosen(clone: CloneConfig, which: string): Promise<Sound> {
  const found = await listGenerations(clone.dir)
  if (which !== 'newest') return chooseGeneration(clone.name, found, which)
  const sound = found.filter(isSound)
  const newest = selectedGeneration({ selected: 'newest' }, sound)
  if (newest) return newest
  throw new Failure('USAGE', `${clone.name} has no generation that is not damaged`, {
    remedy: `see: clone list ${clone.name}`,
  })
}
