// The record of one attempt to pull: what is told to the log and the terminal, and the lines in history and state.

import { Failure, toFailure } from '../shared/failures.ts'
import type { Log } from '../shared/log.ts'
import type { Copied } from './copy/copy.ts'
import type { DiskPlan } from './plan.ts'
import type { OnRetry } from './source/back-off.ts'
import { appendHistory } from './store/history.ts'
import type { Layout } from './store/layout.ts'
import type { Method } from './store/method.ts'
import { readState, writeState, type State } from './store/state.ts'

/** What a running pull tells whoever watches: the terminal's bar, or nobody. */
export interface Watcher {
  /** A phase with bytes to go began. */
  phase(name: 'copy' | 'verify' | 'save' | 'patch', totalBytes: number): void
  progress(bytes: number): void
  /** The bar's end, on every way out. */
  done(): void
  /** Something that a person who looks on wants to know. */
  note?(text: string): void
}

export const NOBODY: Watcher = {
  phase: () => undefined,
  progress: () => undefined,
  done: () => undefined,
}

/** Facts gathered on the way; what is missing was not reached. */
export interface Attempt {
  readonly began: Date
  readonly bytes: Copied
  /** How generations are kept, and what must agree before one is published. */
  method?: Method
  verify?: 'readback' | 'source'
  readonly seconds: Record<string, number>
  /** Tries to get a lost connection back. */
  reconnects: number
  plan?: readonly DiskPlan[]
  session?: string
  /** What is staged may be of use for the next pull. */
  reusable?: boolean
  recoveryPoint?: string
  /** Disks that are not pulled, and why. */
  omitted?: readonly { readonly target: string; readonly reason: string }[]
  /** Chunks that the source calls unchanged and that were hashed all the same. */
  audited?: number
  /** What the audit found. */
  alarm?: string
  /** Set once the generation exists. */
  seq?: number
}

export function newAttempt(): Attempt {
  return {
    began: new Date(),
    bytes: { read: 0, written: 0, changed: 0, hashed: 0, reused: 0 },
    seconds: {},
    reconnects: 0,
  }
}

/** Counts and logs each try to get a lost connection back: no warning, for a pull that goes on has nothing to say under cron. */
export function retriesOf(attempt: Attempt, log: Log): OnRetry {
  return retry => {
    attempt.reconnects++
    log.info({ session: attempt.session, ...retry }, 'connection lost, trying to get it back')
  }
}

/** Runs one phase, logs it as one line and keeps its seconds. */
export async function timed<T>(
  attempt: Attempt,
  log: Log,
  phase: string,
  work: () => Promise<T>,
): Promise<T> {
  const { session, recoveryPoint } = attempt
  const began = performance.now()
  log.debug({ session, recoveryPoint }, `${phase} begins`)
  const result = await work()
  const seconds = Math.round(performance.now() - began) / 1000
  attempt.seconds[phase] = seconds
  log.info({ session: attempt.session, recoveryPoint: attempt.recoveryPoint, seconds }, phase)
  return result
}

/** Writes the attempt's history line and the clone's state. @param error undefined when it succeeded */
export async function recordAttempt(
  layout: Layout,
  attempt: Attempt,
  outcome: 'merged' | 'kept' | 'imported' | 'failed',
  error?: unknown,
): Promise<void> {
  const failure = error === undefined ? undefined : toFailure(error)
  const ended = new Date().toISOString()
  const why = failure && { code: failure.code, message: failure.message }
  const { began, plan, reusable, ...facts } = attempt
  await appendHistory(layout, {
    schema: 1,
    began: began.toISOString(),
    ended,
    outcome,
    ...why,
    ...facts,
    ...(plan && {
      plan: plan.map(({ chunks, ...disk }) => disk),
    }),
  })
  const state: State = await readState(layout)
  await writeState(layout, {
    ...state,
    attempts: state.attempts + 1,
    failures: failure ? state.failures + 1 : 0,
    lastAttempt: { at: ended, outcome, ...why },
  })
}

/** The same failure, saying that the clone itself is good. */
export function withGeneration(error: unknown, id: string): Failure {
  const failure = toFailure(error)
  return new Failure(
    failure.code,
    `${failure.message}; the clone is good all the same: generation ${id} is published`,
    { cause: error, remedy: failure.remedy ?? 'on the source run: clone-server status' },
  )
}
