// The gate's `allocation` and `changes`: what a client need not read, in pages.

import { toFailure, Failure } from '../../shared/failures.ts'
import { MAX_EXTENTS, type GateParams, type GateResult } from '../../shared/gate.ts'
import type { GrainSet } from '../../shared/grain-set.ts'
import type { Lease } from '../session/lease.ts'
import { allocationOf, frozenSession, type Session } from '../session/session.ts'

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

/** A page, which counts as progress of the session. */
function described(session: Session, set: GrainSet, at: number): Page {
  const page = pageOf(set, at)
  session.described += Math.max(0, (page.next ?? set.size) - at)
  return page
}

/** Where a frozen disk has data. @throws Failure SOURCE_REFUSED unless the lease's session is frozen until it is known */
export async function frozenAllocation(
  lease: Lease,
  { target, at }: Omit<GateParams<'allocation'>, 'token'>,
): Promise<GateResult<'allocation'>> {
  const session = frozenSession(lease)
  const found = await allocationOf(session, target).catch((error: unknown) => toFailure(error))
  // What was found out while the session ended may be of what came after.
  frozenSession(lease)
  if (found instanceof Failure) return { reason: found.message, ...NO_PAGE }
  return { size: found.size, ...described(session, found, at) }
}

/** What changed of a frozen disk since a recovery point. @throws Failure SOURCE_REFUSED unless its session is frozen */
export function frozenChanges(
  lease: Lease,
  { target, since, at }: Omit<GateParams<'changes'>, 'token'>,
): GateResult<'changes'> {
  const session = frozenSession(lease)
  const { tracking } = session.frozen
  const changed = tracking.changed.get(target)?.get(since)
  if (changed) return { size: changed.size, ...described(session, changed, at) }
  const reason = tracking.reason ?? `the source has not recorded changes since ${since}`
  return { reason, ...NO_PAGE }
}
