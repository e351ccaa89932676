// When a pull compares everything although the source may know what changed.

import type { CloneConfig } from './config/effective.ts'
import type { FrozenPlan } from './frozen-plan.ts'
import type { Layout } from './store/layout.ts'
import { writeState, type State } from './store/state.ts'

export interface Trust {
  /** `--compare`. */
  readonly compare?: boolean
  /** `--trust-tracking`: a human has looked. */
  readonly trustTracking?: boolean
}

/** Why everything is to be compared; undefined when what the source recorded will do. */
export function whyCompare(
  { compareEveryMs }: Pick<CloneConfig, 'compareEveryMs'>,
  { distrusted, comparedAt }: Pick<State, 'distrusted' | 'comparedAt'>,
  { compare, trustTracking }: Trust,
  now = Date.now(),
): string | undefined {
  if (compare) return '--compare was given'
  if (distrusted && !trustTracking)
    return `tracking is not trusted since ${distrusted.at}; when you know why: --trust-tracking`
  // What came otherwise, an import say, was never compared with this source.
  if (comparedAt === undefined) return 'no comparison is on record'
  if (compareEveryMs === undefined) return undefined
  // A clock that was set back must not put it off for ever.
  const ageMs = Math.abs(now - Date.parse(comparedAt))
  return ageMs >= compareEveryMs ? `the last comparison was ${comparedAt}` : undefined
}

/** The source's record of changes was found wrong: known from now on, whatever becomes of the pull. @returns the new state */
export async function distrust(layout: Layout, state: State, reason: string): Promise<State> {
  const next = { ...state, distrusted: { at: new Date().toISOString(), reason } }
  await writeState(layout, next)
  return next
}

/** The state after a pull that was published. */
export function trustAfter(
  state: State,
  { plan, alarm }: Pick<FrozenPlan, 'plan' | 'alarm'>,
  { trustTracking = false }: Trust,
  now = new Date().toISOString(),
): State {
  const { distrusted, ...rest } = state
  const complete = plan.every(({ kind }) => kind !== 'changed')
  const next = {
    ...rest,
    ...(distrusted && !trustTracking && { distrusted }),
    ...(complete && { comparedAt: now }),
  }
  return alarm === undefined ? next : { ...next, distrusted: { at: now, reason: alarm } }
}
