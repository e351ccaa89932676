// Connecting a lost disk again, inside the session in which it was lost: only the same bytes of the same recovery point.

import { Failure, isFailureCode, toFailure } from '../../shared/failures.ts'
import type { NbdConnection } from '../../shared/nbd/client.ts'
import type { Rate } from '../../shared/rate.ts'
import type { CloneConfig } from '../config/effective.ts'
import { isPassing, type OnRetry } from './back-off.ts'
import type { Gate } from './gate.ts'
import { lastingConnection, type DiskConnection } from './lasting.ts'
import { connectDisk } from './nbd.ts'
import { paced } from './paced.ts'
import { explainRefusal } from './session.ts'
import { manyStreams } from './streams.ts'

/** How long the source may take to say whether the session is on; then it is tried again without its word. */
const WORD_MS = 5_000

/** The frozen session that a disk is read from. */
export interface FrozenSession {
  readonly gate: Gate
  readonly clone: CloneConfig
  readonly token: string
  /** Its recovery point's id. */
  readonly recoveryPoint: string
  /** How many connections each disk may be read over. */
  readonly streams: number
  readonly signal: AbortSignal
  readonly onRetry: OnRetry
  /** How fast its disks may be read, together with all others. */
  readonly rate?: Rate | undefined
}

/**
 * A disk of a session, read over as many connections as are worth it, each as often as it takes.
 * @param first the one that the session began with
 */
export function lastingDisk(
  first: NbdConnection,
  target: string,
  session: FrozenSession,
): DiskConnection {
  const { signal, onRetry, streams, rate } = session
  const connect = (trying: AbortSignal) => connectAgain(first, target, session, trying)
  const lasting = (one: NbdConnection) =>
    lastingConnection(one, { target, signal, onRetry, connect })
  const all = manyStreams(lasting(first), streams, async stopped =>
    lasting(await connect(AbortSignal.any([signal, stopped]))),
  )
  return rate ? paced(all, rate, signal) : all
}

async function connectAgain(
  first: NbdConnection,
  target: string,
  session: FrozenSession,
  signal: AbortSignal,
): Promise<NbdConnection> {
  const { gate, clone, token, recoveryPoint } = session
  const next = await connectDisk(gate.transport, clone, target, token, signal).catch(
    async (error: unknown) => {
      signal.throwIfAborted()
      // A host that cannot be trusted is not asked for its reasons.
      if (toFailure(error).code === 'UNSAFE') throw error
      await checkFrozen(gate, token, signal)
      // A source that refuses says why; a connection that failed on the way is worth another try.
      throw isPassing(error)
        ? error
        : await explainRefusal(gate, clone, target, token, error, signal)
    },
  )
  try {
    if (next.size !== first.size || next.flags !== first.flags)
      throw new Failure(
        'TRANSFER',
        `disk ${target} is another one now: ${next.size} bytes and flags ${next.flags}, before ${first.size} and ${first.flags}`,
      )
    const now = (await gate.call('session.info', { token }, { signal })).recoveryPoint.id
    if (now !== recoveryPoint)
      throw new Failure('TRANSFER', `the session changed from ${recoveryPoint} to ${now}`)
    return next
  } catch (error) {
    next.destroy()
    throw error
  }
}

/** @throws Failure with the source's reason when the session is over; a source that cannot be asked is no reason */
async function checkFrozen(gate: Gate, token: string, signal: AbortSignal): Promise<void> {
  const outcome = await gate
    .call('outcome', { token, waitMs: 0 }, { signal, timeoutMs: WORD_MS })
    .catch((error: unknown) => {
      if (toFailure(error).code === 'SOURCE_UNREACHABLE') return undefined
      throw error
    })
  if (!outcome || outcome.state === 'frozen') return
  const { state, reason, code, remedy } = outcome
  throw new Failure(
    isFailureCode(code) ? code : 'TRANSFER',
    `the session ended: ${reason ?? `it is ${state}`}`,
    { remedy },
  )
}
