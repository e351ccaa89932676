// One session on the source as the standby drives it: greet, describe, open, what it froze, release, outcome.

import { setTimeout as sleep } from 'node:timers/promises'
import { Failure, isFailureCode, toFailure } from '../../shared/failures.ts'
import type { GateResult, SessionInfo } from '../../shared/gate.ts'
import { exportName } from '../../shared/names.ts'
import { NbdError, type NbdConnection } from '../../shared/nbd/client.ts'
import { agree, PROTOCOLS } from '../../shared/protocol.ts'
import { VERSION } from '../../shared/version.ts'
import type { CloneConfig } from '../config/effective.ts'
import type { DiskToPull } from '../plan.ts'
import type { Described } from '../store/bases.ts'
import type { State } from '../store/state.ts'
import { checkDefinitions } from './definition.ts'
import { backOff, isPassing, type OnRetry } from './back-off.ts'
import type { Gate } from './gate.ts'
import { withLost, type Newest, type Omitted } from './lost.ts'
import { connectDisk } from './nbd.ts'

/** What a disk may be at most, in bytes. */
const MAX_DISK = 64 * 1024 ** 4
/** A first round trip that may have been a login, too. */
const SLOW_MS = 5
/** How long a disk's first connection is tried for, once it was lost. */
const GIVE_UP_MS = 60_000
/** How long the reason of a lost connection may take to arrive. */
const ENDED_MS = 1_000
/** How long a source may take to give the reason of a failure; a pull that has failed must not wait for a dead one. */
const REASON_MS = 5_000

export interface Greeting {
  readonly hostId: string
  readonly epoch: number
  /** A question's way to the source and its answer's way back, milliseconds. */
  readonly roundTripMs: number
  /** The source's clock minus ours, milliseconds. */
  readonly clockSkewMs: number
  /** What the source can do beyond the methods of every version. */
  readonly features: readonly string[]
}

/** Versions, clocks and roles. @throws Failure UNSAFE when the source is not one; SOURCE_REFUSED for versions that do not match */
export async function greet(
  gate: Gate,
  clone: CloneConfig,
  { role, epoch }: Pick<State, 'role' | 'epoch'>,
  signal: AbortSignal,
): Promise<Greeting> {
  const ask = async () => {
    const sent = Date.now()
    const hello = await gate.call(
      'hello',
      {
        protocol: { ...PROTOCOLS },
        version: VERSION,
        clockMs: sent,
        clone: { name: clone.name, role, epoch },
      },
      { signal },
    )
    const roundTripMs = Date.now() - sent
    return { hello, roundTripMs, clockSkewMs: Math.round(hello.clockMs - sent - roundTripMs / 2) }
  }
  // The first answer waits for ssh to log in, which says nothing about clocks and distance.
  const first = await ask()
  const { hello, roundTripMs, clockSkewMs } = first.roundTripMs > SLOW_MS ? await ask() : first
  const { protocol, version } = hello
  agree({ min: protocol, max: protocol, version }, { ...PROTOCOLS, version: VERSION })
  if (hello.role !== 'source')
    throw new Failure('UNSAFE', `source ${clone.source.name} says that its role is ${hello.role}`)
  const { hostId, epoch: sourceEpoch, features = [] } = hello
  return { hostId, epoch: sourceEpoch, roundTripMs, clockSkewMs, features }
}

export interface Wanted {
  readonly disks: readonly Described[]
  /** Disks that the generation will not have, and why. The source itself refuses a session for one it cannot freeze. */
  readonly omitted: readonly Omitted[]
}

/**
 * What will be pulled of a domain. @param newest the generation whose disks must not go without a word
 * @throws Failure SOURCE_REFUSED when there is nothing to pull
 */
export function wantedDisks(
  clone: CloneConfig,
  described: GateResult<'describe'>,
  newest: Newest | undefined,
): Wanted {
  const reasonOf = (disk: { target: string; exported: boolean; reason?: string | undefined }) =>
    clone.excluded.has(disk.target)
      ? 'excluded in standby.yaml'
      : disk.exported
        ? undefined
        : (disk.reason ?? 'not exported by the source')
  checkOnce(described.disks, `source ${clone.source.name}`)
  const disks = described.disks
    .filter(disk => reasonOf(disk) === undefined)
    .map(({ target, size, format = 'raw', allocated }) => ({ target, size, format, allocated }))
  const omitted = described.disks.flatMap(disk => {
    const reason = reasonOf(disk)
    return reason === undefined ? [] : [{ target: disk.target, reason }]
  })
  if (disks.length === 0)
    throw new Failure(
      'SOURCE_REFUSED',
      `domain ${described.domain} has no disk to pull: ${omitted.map(one => `${one.target}: ${one.reason}`).join('; ') || 'none at all'}`,
    )
  return { disks, omitted: withLost(disks, omitted, clone.excluded, newest) }
}

/** @throws Failure TRANSFER for a target that comes twice */
function checkOnce(disks: readonly { target: string }[], where: string): void {
  const seen = new Set<string>()
  for (const { target } of disks) {
    if (seen.has(target)) throw new Failure('TRANSFER', `${where} names disk ${target} twice`)
    seen.add(target)
  }
}

/** A session that is being begun, and who is to know of its troubles. */
export interface Beginning {
  readonly gate: Gate
  readonly clone: CloneConfig
  readonly token: string
  /** Aborts by the session's end too. */
  readonly signal: AbortSignal
  /** Aborts only when the user wants no more. */
  readonly stopped: AbortSignal
  readonly onRetry: OnRetry
}

/**
 * Connects to one disk; a refusal by NBD, which can only say "denied", gets the source's reason. A connection that is lost on
 * the way, without a word of the source against it, is made anew for up to a minute.
 */
export async function connectOrExplain(
  { gate, clone, token, signal, stopped, onRetry }: Beginning,
  target: string,
): Promise<NbdConnection> {
  const connect = async (signal: AbortSignal): Promise<NbdConnection> => {
    try {
      return await connectDisk(gate.transport, clone, target, token, signal)
    } catch (error) {
      stopped.throwIfAborted()
      throw await explainRefusal(gate, clone, target, token, error, stopped)
    }
  }
  try {
    return await connect(signal)
  } catch (error) {
    stopped.throwIfAborted()
    const failure = toFailure(error)
    // What was never there is not waited for.
    const unheard = failure instanceof NbdError && failure.fault === 'CONNECT'
    if (signal.aborted || unheard || !isPassing(failure)) throw failure
    const deadline = performance.now() + GIVE_UP_MS
    return await backOff(target, signal, onRetry).again(failure, deadline, connect)
  }
}

/** Why a connection was refused, by the source; the error itself when the source gives no reason. Never rejects. */
export async function explainRefusal(
  gate: Gate,
  clone: CloneConfig,
  target: string,
  token: string,
  error: unknown,
  signal: AbortSignal,
): Promise<Failure> {
  const outcome = await gate
    .call('outcome', { token, waitMs: 0 }, { signal, timeoutMs: REASON_MS })
    .catch(() => undefined)
  const { refusals = [], reason, code, remedy } = outcome ?? {}
  const wanted = exportName(clone.domain, target, token)
  const refusal =
    refusals.filter(one => one.export === wanted).at(-1) ??
    refusals.at(-1) ??
    (reason === undefined ? undefined : { reason, code, remedy })
  if (!refusal) return toFailure(error)
  return new Failure(
    isFailureCode(refusal.code) ? refusal.code : 'SOURCE_REFUSED',
    `source ${clone.source.name} refused disk ${target}: ${refusal.reason}`,
    { cause: error, remedy: refusal.remedy },
  )
}

/** A connection lost in the middle mostly means that the session ended; the source knows why. Always throws. */
export async function explainLoss(
  gate: Gate,
  token: string,
  error: unknown,
  signal: AbortSignal,
): Promise<never> {
  const failure = toFailure(error)
  if (failure.code !== 'TRANSFER') throw failure
  // The word that the session ended may still be under way while its connections are gone already.
  await sleep(ENDED_MS, undefined, { signal }).catch(() => signal.throwIfAborted())
  const outcome = await gate
    .call('outcome', { token, waitMs: 0 }, { signal, timeoutMs: REASON_MS })
    .catch(() => undefined)
  if (outcome?.reason === undefined || outcome.state === 'frozen') throw failure
  const code = isFailureCode(outcome.code) ? outcome.code : 'TRANSFER'
  throw new Failure(code, `${failure.message}: the session ended: ${outcome.reason}`, {
    cause: error,
    remedy: outcome.remedy,
  })
}

/**
 * Checks what the session froze against what was connected: every frozen disk, or a reason why not.
 * @param omitted disks that are left out knowingly. @throws Failure TRANSFER or SOURCE_REFUSED
 */
export function checkSession(
  { domain, source }: CloneConfig,
  info: SessionInfo,
  uuid: string,
  connections: ReadonlyMap<string, NbdConnection>,
  omitted: Wanted['omitted'],
): DiskToPull[] {
  if (info.uuid !== uuid)
    throw new Failure('TRANSFER', `the session is of domain ${info.uuid}, not ${uuid}`)
  if (info.inactiveXml.trim() === '')
    throw new Failure(
      'TRANSFER',
      'the session has no domain XML, so its clone could not be started',
    )
  const { nvram } = info
  if (nvram !== null && Buffer.from(nvram, 'base64').toString('base64') !== nvram)
    throw new Failure('TRANSFER', 'the UEFI variables of the session are no base64')
  checkOnce(info.disks, 'the session')
  for (const { target } of info.disks)
    if (!connections.has(target) && !omitted.some(one => one.target === target))
      throw new Failure(
        'TRANSFER',
        `the session froze disk ${target}, which the domain did not have a moment before`,
        { remedy: 'pull again' },
      )
  checkDefinitions(info, { domain, uuid }, `source ${source.name}`, 'SOURCE_REFUSED')
  return [...connections].map(([target, connection]) => {
    const disk = info.disks.find(one => one.target === target)
    if (!disk) throw new Failure('TRANSFER', `the session does not know disk ${target}`)
    if (disk.size !== connection.size)
      throw new Failure(
        'TRANSFER',
        `disk ${target} has ${disk.size} bytes by the gate, but ${connection.size} by NBD`,
      )
    if (disk.size > MAX_DISK) throw new Failure('SOURCE_REFUSED', `disk ${target} is over 64 TiB`)
    return disk
  })
}
