// How a session ends well: one release, whatever becomes of the gate meanwhile, and the source's word that it merged.

import { setTimeout as sleep } from 'node:timers/promises'
import { Failure, isFailureCode, toFailure } from '../../shared/failures.ts'
import type { Watcher } from '../attempt.ts'
import type { Gate } from './gate.ts'

/** How often outcome is asked at most when the source answers at once. */
const ASK_AGAIN_MS = 500
/** A wait for the merge that people are told about. */
const LONG_MS = 5_000
/** How often a release is sent when the gate dies of each. */
const RELEASES = 3
/** What weighs more than a pull that came to nothing. */
const WORSE: ReadonlySet<string> = new Set(['MERGE_FAILED', 'NEEDS_OPERATOR'])

/**
 * Ends the session as a success. Only this proves that all that was read is one recovery point.
 * @throws Failure TRANSFER, or the source's own code, when the session was over before
 */
export async function release(
  gate: Gate,
  token: string,
  recoveryPoint: string,
  signal: AbortSignal,
): Promise<void> {
  try {
    const info = await gate.call('session.info', { token }, { signal })
    const released = await letGo(gate, token, signal)
    for (const id of [info.recoveryPoint.id, released ?? recoveryPoint])
      if (id !== recoveryPoint)
        throw new Failure('TRANSFER', `the session changed from ${recoveryPoint} to ${id}`)
  } catch (error) {
    signal.throwIfAborted()
    const failure = toFailure(error)
    throw new Failure(
      WORSE.has(failure.code) ? failure.code : 'TRANSFER',
      `nothing is published, because the session could not be released as one recovery point: ${failure.message}`,
      { cause: error, remedy: failure.remedy },
    )
  }
}

/**
 * Releases once. When the gate died before it answered, the outcome tells: only a release ends a session without a reason.
 * @returns the recovery point that the source released, when it was heard
 */
async function letGo(gate: Gate, token: string, signal: AbortSignal): Promise<string | undefined> {
  for (let tries = 1; ; tries++) {
    try {
      return (await gate.call('session.release', { token }, { signal })).recoveryPoint
    } catch (error) {
      if (toFailure(error).code !== 'SOURCE_UNREACHABLE' || tries === RELEASES) throw error
      const outcome = await gate.call('outcome', { token, waitMs: 0 }, { signal })
      if (outcome.state === 'frozen') continue
      if (outcome.reason === undefined && outcome.state !== 'reserved') return undefined
      throw new Failure(
        isFailureCode(outcome.code) ? outcome.code : 'TRANSFER',
        outcome.reason ?? `the session is ${outcome.state}`,
        { cause: error, remedy: outcome.remedy },
      )
    }
  }
}

/**
 * Waits until the source is on its bases again, or others still use the session (`kept`): as long as the source says
 * that it merges. @param onLong called once, when that takes long
 * @throws Failure MERGE_FAILED, or the source's own code; SOURCE_UNREACHABLE when the gate is lost meanwhile
 */
export async function mergeOutcome(
  gate: Gate,
  token: string,
  signal: AbortSignal,
  onLong: () => void,
): Promise<'merged' | 'kept'> {
  const long = setTimeout(onLong, LONG_MS)
  try {
    return await untilMerged(gate, token, signal)
  } finally {
    clearTimeout(long)
  }
}

async function untilMerged(
  gate: Gate,
  token: string,
  signal: AbortSignal,
): Promise<'merged' | 'kept'> {
  for (;;) {
    const outcome = await gate.call('outcome', { token, waitMs: 30_000 }, { signal })
    if (outcome.state === 'merged' || outcome.state === 'kept') return outcome.state
    if (outcome.state === 'failed') {
      const code = isFailureCode(outcome.code) ? outcome.code : 'MERGE_FAILED'
      throw new Failure(
        code,
        `the source could not merge: ${outcome.reason ?? 'no reason given'}`,
        {
          remedy: outcome.remedy,
        },
      )
    }
    if (outcome.state !== 'merging')
      throw new Failure(
        'TRANSFER',
        `the source says that the released session is ${outcome.state}, so whether it merges is unknown`,
        { remedy: 'on the source run: clone-server status' },
      )
    await sleep(ASK_AGAIN_MS, undefined, { signal }).catch(() => signal.throwIfAborted())
  }
}

/**
 * Tells the source that the recovery point is held, and waits until it has merged. Whether it took the word is told at the
 * end only, because whether it merged weighs more. @throws as mergeOutcome
 */
export async function acknowledge(
  gate: Gate,
  { clone, domain, token, id }: { clone: string; domain: string; token: string; id: string },
  signal: AbortSignal,
  watcher: Watcher,
): Promise<'merged' | 'kept'> {
  const acknowledged = gate.call('acknowledge', { domain, recoveryPoint: id }, { signal }).then(
    () => undefined,
    (error: unknown) => toFailure(error),
  )
  const outcome = await mergeOutcome(gate, token, signal, () =>
    watcher.note?.(`${clone}: waiting for the source to merge; Ctrl-C ends only the waiting`),
  )
  const refused = await acknowledged
  if (refused) throw refused
  return outcome
}

/** Lets a session go that came to nothing, so that the source merges at once instead of when the lease lapses. */
export async function giveUp(gate: Gate, token: string): Promise<void> {
  await gate.call('session.release', { token }, { timeoutMs: 3_000 }).catch(() => undefined)
}
