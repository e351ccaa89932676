// The gate's `allocation` and `changes`: what a client need not read, in pages.

import { toFailure, Failure } from '../../shared/failures.ts'
import { MAX_EXTENTS, type GateParams, type GateResult } from '../../shared/gate.ts'
import type { GrainSet } from '../../shared/grain-set.ts'
import type { Lease } from '../session/lease.ts'
import { allocationOf, frozenSession } from '../session/session.ts'

type Page = Pick<GateResult<'allocation'>, 'extents' | 'next'>

const NO_PAGE: Page = { extents: [], next: null }

function pageOf(set: GrainSet, at: number): Page {
  const extents: [number, number][] = []
  for (const [offset, length] of set.extents(Math.min(at, set.size))) {
    if (extents.length === MAX_EXTENTS) return { extents, next: offset }
    extents.push([offset, length])
  }
  return { extents, next: null }
}

/** Where a frozen disk has data. @throws Failure SOURCE_REFUSED unless the lease's session is frozen until it is known */
export async function frozenAllocation(
  lease: Lease,
  { target, at }: Omit<GateParams<'allocation'>, 'token'>,
): Promise<GateResult<'allocation'>> {
  const found = await allocationOf(frozenSession(lease), target).catch((error: unknown) =>
    toFailure(error),
  )
  // What was found out while the session ended may be of what came after.
  frozenSession(lease)
  return found instanceof Failure
    ? { reason: found.message, ...NO_PAGE }
    : { size: found.size, ...pageOf(found, at) }
}

/** What changed of a frozen disk since a recovery point. @throws Failure SOURCE_REFUSED unless its session is frozen */
export function frozenChanges(
  lease: Lease,
  { target, since, at }: Omit<GateParams<'changes'>, 'token'>,
): GateResult<'changes'> {
  const { tracking } = frozenSession(lease).frozen
  const changed = tracking.changed.get(target)?.get(since)
  if (changed) return { size: changed.size, ...pageOf(changed, at) }
  const reason = tracking.reason ?? `the source has not recorded changes since ${since}`
  return { reason, ...NO_PAGE }
}
