// The one table of faults: what `npm run test:faults` runs, and of which `npm test` runs a sample.

import { KILLS } from './kills.ts'
import type { Scenario } from './scenario.ts'

export const SCENARIOS: readonly Scenario[] = [...KILLS]

/** Rows whose name is one of these, or begins with one of these and a dash; all, when none is given. */
export function chosen(names: readonly string[] | undefined): readonly Scenario[] {
  if (!names) return SCENARIOS
  return SCENARIOS.filter(({ name }) =>
    names.some(one => name === one || name.startsWith(`${one}-`)),
  )
}
