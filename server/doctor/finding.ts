// What doctor says of each thing that it looked at, how a table of checks is run, and the exit status of it all.

import { FAILURES, toFailure, worstExit, type FailureCode } from '../../shared/failures.ts'

/** `skip`: could not be looked at, because of something else that is told. */
export type Verdict = 'pass' | 'warn' | 'fail' | 'skip'

export interface Outcome {
  readonly verdict: Verdict
  /** One line of what was found. */
  readonly found: string
  /** What to do about it. */
  readonly remedy?: string
  /** Of a fail: what a pull or `serve` would fail with. */
  readonly code?: FailureCode
  /** More lines, for who wants to know. */
  readonly notes?: readonly string[]
}

export interface Finding extends Outcome {
  /** `host`, or `domain NAME`. */
  readonly about: string
  readonly check: string
}

/** One row of a table of checks; what it needs was read before, so most are pure. */
export interface Check<Facts> {
  readonly check: string
  readonly look: (
    facts: Facts,
  ) => Outcome | readonly Outcome[] | Promise<Outcome | readonly Outcome[]>
}

export const pass = (found: string, notes: readonly string[] = []): Outcome =>
  notes.length === 0 ? { verdict: 'pass', found } : { verdict: 'pass', found, notes }

export const warn = (found: string, remedy: string, notes: readonly string[] = []): Outcome =>
  notes.length === 0
    ? { verdict: 'warn', found, remedy }
    : { verdict: 'warn', found, remedy, notes }

export const fail = (
  found: string,
  remedy: string,
  code: FailureCode = 'SOURCE_REFUSED',
): Outcome => ({ verdict: 'fail', found, remedy, code })

export const skip = (found: string): Outcome => ({ verdict: 'skip', found })

/** Runs a table. A check that breaks is a finding too: the others are still worth having. */
export async function runChecks<Facts>(
  about: string,
  checks: readonly Check<Facts>[],
  facts: Facts,
): Promise<Finding[]> {
  const each = checks.map(async ({ check, look }) => {
    let outcomes: Outcome | readonly Outcome[]
    try {
      outcomes = await look(facts)
    } catch (error) {
      const { message, hint, code } = toFailure(error)
      outcomes = fail(message, hint, code)
    }
    return [outcomes].flat().map(outcome => ({ about, check, ...outcome }))
  })
  return (await Promise.all(each)).flat()
}

/** 0 unless something failed. A configuration that cannot be read outweighs all else: nothing was known of the domains. */
export function exitOf(findings: readonly Finding[]): number {
  const codes = findings.flatMap(({ verdict, code }) => (verdict === 'fail' && code ? [code] : []))
  if (codes.includes('USAGE')) return FAILURES.USAGE.exit
  return worstExit(codes.map(code => FAILURES[code].exit))
}
