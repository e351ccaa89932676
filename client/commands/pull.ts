// clone pull: several domains, one after the other; the worst outcome decides the exit status.

import { toFailure, worstExit, type Failure } from '../../shared/failures.ts'
import type { Log } from '../../shared/log.ts'
import { createRate, type Rate } from '../../shared/rate.ts'
import { limitNow, UNLIMITED, type Timetable } from '../../shared/timetable.ts'
import type { Watcher } from '../attempt.ts'
import type { CloneConfig } from '../config/effective.ts'
import type { StandbyConfig } from '../config/schema.ts'
import { freshness, isDue } from '../freshness.ts'
import { FEATURES, type GateResult } from '../../shared/gate.ts'
import { planPull, type Change } from '../plan.ts'
import { whyCompare } from '../trust.ts'
import { pull } from '../pull.ts'
import type { Pulled } from '../pulled.ts'
import { openGate } from '../source/gate.ts'
import type { Omitted } from '../source/lost.ts'
import { greet, wantedDisks } from '../source/session.ts'
import { NO_USER } from '../source/user.ts'
import { isUndamaged, soundGenerations } from '../store/generation.ts'
import { boundTo, checkBinding, checkRole, pullingNow } from '../store/guard.ts'
import { layoutOf, recoveryPointsIn } from '../store/layout.ts'
import { heldIn } from '../store/bases.ts'
import { readState } from '../store/state.ts'
import { namedClones } from './named.ts'

export interface PullCommand {
  readonly domains: readonly string[]
  readonly all: boolean
  readonly ifDue: boolean
  readonly adopt: boolean
  readonly full: boolean
  readonly compare?: boolean
  readonly trustTracking?: boolean
  readonly dryRun: boolean
  /** Milliseconds; the configuration's when it is left out. */
  readonly maxDurationMs?: number | undefined
  /** How fast all of it may read; the configuration's when it is left out. */
  readonly limitRate?: Timetable | undefined
}

export interface PlannedDisk {
  readonly target: string
  readonly kind: 'full' | 'hash' | 'changed'
  readonly reason: string
  /** Bytes, when the source knows before a session. */
  readonly size?: number
}

export type PullResult = { readonly clone: string } & (
  | { readonly outcome: 'published'; readonly pulled: Pulled }
  | { readonly outcome: 'not-due'; readonly ageMs: number }
  | {
      readonly outcome: 'planned'
      readonly disks: readonly PlannedDisk[]
      readonly omitted: readonly Omitted[]
    }
  /** With --if-due: another run of ours pulls it now. */
  | { readonly outcome: 'running'; readonly by: string }
  | { readonly outcome: 'failed'; readonly failure: Failure }
)

/** @param watch makes the progress bar of one clone. @param user who runs it, if anybody does */
export async function pullCommand(
  config: StandbyConfig,
  command: PullCommand,
  log: Log,
  signal: AbortSignal,
  watch: (clone: string) => Watcher,
  user = NO_USER,
): Promise<{ results: PullResult[]; exit: number }> {
  const results: PullResult[] = []
  const { limitRate = config.limitRate ?? UNLIMITED } = command
  // One for all domains and streams: what the line may carry does not grow with them.
  const rate = createRate(() => limitNow(limitRate))
  for (const clone of namedClones(config, command.domains, command.all, user)) {
    try {
      signal.throwIfAborted()
      results.push(await pullOne(clone, command, rate, log, signal, watch))
    } catch (error) {
      results.push({ clone: clone.name, outcome: 'failed', failure: toFailure(error) })
    }
  }
  const exits = results.map(result => (result.outcome === 'failed' ? result.failure.exit : 0))
  return { results, exit: worstExit(exits) }
}

async function pullOne(
  clone: CloneConfig,
  command: PullCommand,
  rate: Rate,
  log: Log,
  signal: AbortSignal,
  watch: (clone: string) => Watcher,
): Promise<PullResult> {
  const { ifDue, adopt, full, compare = false, trustTracking = false, dryRun } = command
  const { maxDurationMs = clone.maxDurationMs } = command
  if (ifDue) {
    const newest = (await soundGenerations(clone.dir)).filter(isUndamaged).at(-1)?.generation
    const fresh = freshness(newest, clone.rpoMs)
    if (fresh.ageMs !== undefined && !isDue(fresh, clone.rpoMs))
      return { clone: clone.name, outcome: 'not-due', ageMs: fresh.ageMs }
  }
  if (dryRun)
    return {
      clone: clone.name,
      outcome: 'planned',
      ...(await planOnly(clone, command, signal)),
    }
  const options = {
    ...{ adopt, full, compare, trustTracking },
    ...{ signal, log, maxDurationMs, rate, watcher: watch(clone.name) },
  }
  try {
    return { clone: clone.name, outcome: 'published', pulled: await pull(clone, options) }
  } catch (error) {
    const by = ifDue ? pullingNow(error) : undefined
    if (by === undefined) throw error
    return { clone: clone.name, outcome: 'running', by }
  }
}

/** What a pull would read, asked without a session: nothing changes on either host. */
async function planOnly(
  clone: CloneConfig,
  { adopt, full, compare, trustTracking }: PullCommand,
  signal: AbortSignal,
): Promise<{ disks: PlannedDisk[]; omitted: readonly Omitted[] }> {
  const layout = layoutOf(clone.dir)
  const state = await readState(layout)
  checkRole(layout, state)
  const newest = (await soundGenerations(clone.dir)).at(-1)
  await using gate = await openGate(clone.source, signal)
  const { hostId, features } = await greet(gate, clone, state, signal)
  const described = await gate.call('describe', { domain: clone.domain }, { signal })
  checkBinding(
    layout,
    boundTo(state, newest?.generation),
    { hostId, domainUuid: described.uuid },
    adopt,
  )
  const { disks, omitted } = wantedDisks(clone, described, newest)
  const sizes = new Map(disks.map(({ target, size }) => [target, size]))
  const held = newest && heldIn(newest)
  const donor = (await recoveryPointsIn(layout.staging)).at(-1)
  const plan = planPull(
    disks.map(disk => ({
      ...disk,
      size: disk.size ?? held?.find(one => one.target === disk.target)?.size ?? 0,
    })),
    held,
    {
      ...{ digests: features.includes(FEATURES.digests), full, verify: clone.verify, donor },
      compare: whyCompare(clone, state, {
        compare: compare ?? false,
        trustTracking: trustTracking ?? false,
      }),
      changes: new Map(
        described.disks.map(({ target, tracked }) => [target, recorded(tracked, newest?.id)]),
      ),
    },
  )
  const planned = plan.map(({ target, kind, reason }) => {
    const size = sizes.get(target)
    return { target, kind, reason, ...(size !== undefined && { size }) }
  })
  return { disks: planned, omitted }
}

/** What the source has recorded since the newest generation, so far. */
function recorded(
  tracked: GateResult<'describe'>['disks'][number]['tracked'],
  since: string | undefined,
): Change {
  const point = tracked?.find(({ recoveryPoint }) => recoveryPoint === since)
  return point
    ? { bytes: point.bytes }
    : { reason: `the source has not recorded changes since ${since ?? 'then'}` }
}
