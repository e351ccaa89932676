// The gate as the standby sees it: typed calls, the heartbeat of a lease, and another link when one dies under it.

import { Failure, isFailureCode, toFailure } from '../../shared/failures.ts'
import type { GateMethod, GateParams, GateResult } from '../../shared/gate.ts'
import { backOff, type OnRetry } from './back-off.ts'
import { openLink, type Ended, type GateLink } from './gate-link.ts'
import { orAborted } from './or-aborted.ts'
import type { NamedSource } from './source.ts'
import { openTransport, type Transport } from './transport.ts'

/** The lease is renewed every 10 s and lapses after 30 s. */
const HEARTBEAT_MS = 10_000
const LAPSE_MS = 30_000
/** Once the session is released no lease waits: so long a source may be away until its word on the merge is given up. */
const OUTAGE_MS = 60_000
/** session.open may wait 120 s for a running merge; a gate that is silent for longer than this is gone. */
const ANSWER_MS = 150_000
/** Asking again does no harm. Whether a release took effect must be asked by other means; what an open
 * reserved that nobody heard of ends by itself. */
const REPEATABLE: ReadonlySet<GateMethod> = new Set<GateMethod>([
  'hello',
  'describe',
  'session.open',
  'session.renew',
  'session.info',
  'acknowledge',
  'digests',
  'allocation',
  'changes',
  'outcome',
])

/** A lease that is to be kept, and with it the gate. */
export interface KeptLease {
  readonly token: string
  /** When it fires, a gate that is lost stays lost. */
  readonly signal: AbortSignal
  /** The lease is over, or the gate was lost for good; called at most once. */
  readonly onLost: (reason: Failure) => void
  /** Called when a try to reach the source again begins. */
  readonly onRetry: OnRetry
}

export interface Gate extends AsyncDisposable {
  /** How its source is reached; closed with the gate. */
  readonly transport: Transport
  /**
   * Asks the source. Once it was greeted, a call waits for a lost gate to come back, and is repeated if it
   * was under way and can do no harm; `session.release` fails then.
   * @throws Failure with the source's code; TRANSFER when it answers nonsense; SOURCE_UNREACHABLE
   * when it is gone or silent; the signal's reason when that fires first
   */
  call<M extends GateMethod>(
    method: M,
    params: GateParams<M>,
    options?: { signal?: AbortSignal | undefined; timeoutMs?: number },
  ): Promise<GateResult<M>>
  /**
   * Renews the one lease of this gate every 10 s until the returned function is called. A gate that dies is replaced until
   * the lease would lapse at the source; for 60 s before there is one, and when it is kept no more.
   */
  keepLease(lease: KeptLease): () => void
}

/** @property renewedAt by performance.now() */
interface Kept extends KeptLease {
  isKept: boolean
  renewedAt: number
}

/**
 * Starts a source's gate; disposing ends it, and the transport. @param starting ends only the wait for its start
 * @throws Failure SOURCE_UNREACHABLE, and as the transport's; the signal's reason
 */
export async function openGate(source: NamedSource, starting: AbortSignal): Promise<Gate> {
  const where = `source ${source.name}`
  const closed = new AbortController()
  const transport = openTransport(source)
  let link = await openLink(where, transport, ended, starting).catch(async (error: unknown) => {
    await transport[Symbol.asyncDispose]()
    throw error
  })
  let coming: Promise<GateLink> | undefined
  /** What was said and heard when the source was greeted: every later gate must come from the same one. */
  let greeting: { params: GateParams<'hello'>; hostId: string } | undefined
  let kept: Kept | undefined

  /** What becomes of a lease that is let go is no loss. */
  function tell(reason: Failure): void {
    if (kept?.isKept !== true) return
    kept.isKept = false
    kept.onLost(reason)
  }

  function ended({ token, code: given, reason, remedy }: Ended): void {
    const code = isFailureCode(given) ? given : 'TRANSFER'
    if (token === kept?.token)
      tell(new Failure(code, `${where}: the session ended under the pull: ${reason}`, { remedy }))
  }

  /** The link to ask: the present one, or the one that replaces it. */
  async function current(): Promise<GateLink> {
    if (!link.lost.aborted) return link
    const stays = closed.signal.aborted || kept?.signal.aborted === true || link.isNonsense()
    if (!greeting || stays) throw link.lost.reason
    return (coming ??= reopen(link, kept))
  }

  /** A failure stays: every later call is told the same. */
  async function reopen(old: GateLink, lease: Kept | undefined): Promise<GateLink> {
    const now = performance.now()
    const deadline = lease?.isKept === true ? lease.renewedAt + LAPSE_MS : now + OUTAGE_MS
    const signals = [closed.signal, ...(lease ? [lease.signal] : [])]
    const retries = backOff('gate', AbortSignal.any(signals), lease?.onRetry ?? (() => undefined))
    await old[Symbol.asyncDispose]()
    link = await retries.again(old.lost.reason as Failure, deadline, greetAgain)
    coming = undefined
    follow(link)
    return link
  }

  /** Another link, to the same source, that has the lease. */
  async function greetAgain(signal: AbortSignal): Promise<GateLink> {
    const next = await openLink(where, transport, ended, signal)
    try {
      if (greeting) {
        const params = { ...greeting.params, clockMs: Date.now() }
        const { hostId } = await next.call('hello', params, signal)
        if (hostId !== greeting.hostId)
          throw new Failure(
            'UNSAFE',
            `${where} is another host now: ${hostId}, it was ${greeting.hostId}`,
            { remedy: 'check what its name and address lead to' },
          )
      }
      if (kept?.isKept === true)
        await renewed(token => next.call('session.renew', { token }, signal))
      return next
    } catch (error) {
      next.abandon()
      await next[Symbol.asyncDispose]()
      throw error
    }
  }

  /** Notes when a renewal was sent: the source counts from when it hears it, which is later. */
  async function renewed(renew: (token: string) => Promise<unknown>): Promise<void> {
    if (!kept) return
    const lease = kept
    const sentAt = performance.now()
    await renew(lease.token)
    lease.renewedAt = Math.max(lease.renewedAt, sentAt)
  }

  /** A lease needs its gate at once, not only when the next call does. */
  function follow(one: GateLink): void {
    const lost = (): void => void current().catch((error: unknown) => tell(toFailure(error)))
    if (one.lost.aborted) lost()
    else one.lost.addEventListener('abort', lost, { once: true })
  }

  const call: Gate['call'] = async (method, params, options = {}) => {
    const { timeoutMs = ANSWER_MS } = options
    const late = new AbortController()
    const timer = setTimeout(() => late.abort(silent(method, timeoutMs)), timeoutMs)
    const signal = AbortSignal.any([late.signal, ...(options.signal ? [options.signal] : [])])
    try {
      for (;;) {
        const one = await orAborted(current(), signal)
        try {
          const result = await one.call(method, params, signal)
          if (method === 'hello') {
            const { hostId } = result as GateResult<'hello'>
            greeting = { params: params as GateParams<'hello'>, hostId }
          }
          return result
        } catch (error) {
          if (error !== one.lost.reason || !REPEATABLE.has(method)) throw error
        }
      }
    } finally {
      clearTimeout(timer)
    }
  }

  return {
    transport,
    call,
    keepLease(lease) {
      const mine: Kept = { ...lease, isKept: true, renewedAt: performance.now() }
      kept = mine
      follow(link)
      const timer = setInterval(() => {
        renewed(token => call('session.renew', { token }, { timeoutMs: LAPSE_MS })).catch(
          (error: unknown) => tell(toFailure(error)),
        )
      }, HEARTBEAT_MS)
      return () => {
        mine.isKept = false
        clearInterval(timer)
      }
    },
    async [Symbol.asyncDispose]() {
      closed.abort(new Failure('INTERNAL', 'the gate was closed'))
      if (kept) kept.isKept = false
      await coming?.catch(() => undefined)
      await link[Symbol.asyncDispose]()
      await transport[Symbol.asyncDispose]()
    },
  }
}

function silent(method: GateMethod, timeoutMs: number): Failure {
  return new Failure(
    'SOURCE_UNREACHABLE',
    `the source's gate did not answer ${method} within ${timeoutMs / 1000} s`,
  )
}
