// What a pull is asked for, and what became of it.

import type { Log } from '../shared/log.ts'
import type { Rate } from '../shared/rate.ts'
import type { Attempt, Watcher } from './attempt.ts'
import type { DiskPlan } from './plan.ts'
import type { Wanted } from './source/session.ts'
import type { PrunePlan } from './store/prune.ts'

export interface PullOptions {
  /** Bind the clone to this source's domain although it belonged to another. */
  readonly adopt: boolean
  /** Read and write every byte, whatever the clone has. */
  readonly full: boolean
  /** Compare everything, and believe the source again. */
  readonly compare?: boolean
  readonly trustTracking?: boolean
  readonly signal: AbortSignal
  /** Milliseconds until a pull that has not read everything stops; undefined: as long as it takes. */
  readonly maxDurationMs?: number | undefined
  /** Shared by all pulls of this process; undefined: as fast as it goes. */
  readonly rate?: Rate | undefined
  readonly log: Log
  readonly watcher: Watcher
}

export interface Pulled {
  readonly recoveryPoint: string
  readonly seq: number
  readonly dir: string
  readonly session: string
  readonly plan: readonly DiskPlan[]
  readonly omitted: Wanted['omitted']
  readonly bytes: Readonly<Attempt['bytes']>
  readonly seconds: Readonly<Record<string, number>>
  /** `merged`: the source is on its bases again; `kept`: others still use its session. */
  readonly source: 'merged' | 'kept'
  readonly pruned: PrunePlan
  /** The source's record of changes was found wrong, so all was compared. */
  readonly alarm?: string
}
