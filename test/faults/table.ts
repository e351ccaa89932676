// The one table of faults: what `npm run test:faults` runs, and of which `npm test` runs a sample.

import { ADMIN } from './admin.ts'
import { CLIENT } from './clients.ts'
import { GUEST } from './guest.ts'
import { HASHING } from './hashing.ts'
import { HOST } from './host.ts'
import { KILLS } from './kills.ts'
import { LIBVIRTD } from './libvirtd.ts'
import { OFF } from './off.ts'
import { RANDOM } from './random.ts'
import type { Scenario } from './scenario.ts'
import { STANDBY } from './standby.ts'
import { STORE } from './store.ts'

export const SCENARIOS: readonly Scenario[] = [
  ...KILLS,
  ...LIBVIRTD,
  ...GUEST,
  ...HOST,
  ...ADMIN,
  ...OFF,
  ...CLIENT,
  ...HASHING,
  ...RANDOM,
  ...STANDBY,
  ...STORE,
]

/** Rows whose name is one of these, or begins with one of these and a dash; all, when none is given. */
export function chosen(names: readonly string[] | undefined): readonly Scenario[] {
  if (!names) return SCENARIOS
  return SCENARIOS.filter(({ name }) =>
    names.some(one => name === one || name.startsWith(`${one}-`)),
  )
}

/** What `npm test` has time for: every kind of fault. */
export function sample(): readonly Scenario[] {
  return SCENARIOS.filter(scenario => scenario.sample === true)
}
