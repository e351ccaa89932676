// Whether a change of rights takes something away: then what the client has open may be more than it may have now.

import { isWithin, rangeOf } from './ranges.ts'
import type { Rights } from './rights.ts'

/** @param before undefined: nobody can tell what it had, so it may have been everything */
export function isNarrower(before: Rights | undefined, after: Rights): boolean {
  if (!before) return true
  return (
    fewerDomains(before.domains, after.domains) ||
    before.verbs.some(verb => !after.verbs.includes(verb)) ||
    (after.bandwidth ?? Infinity) < (before.bandwidth ?? Infinity) ||
    fewerAddresses(before.from, after.from)
  )
}

function fewerDomains(before: Rights['domains'], after: Rights['domains']): boolean {
  if (after === 'all') return false
  return before === 'all' || before.some(domain => !after.includes(domain))
}

/** Two ranges that only together hold an older one count as fewer: to end too much does no harm. */
function fewerAddresses(before: Rights['from'], after: Rights['from']): boolean {
  if (!after) return false
  if (!before) return true
  const ranges = after.flatMap(text => rangeOf(text) ?? [])
  return before
    .flatMap(text => rangeOf(text) ?? [])
    .some(inner => !ranges.some(outer => isWithin(inner, outer)))
}
