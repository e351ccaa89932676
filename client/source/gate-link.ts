// One gate of a source, over whatever carries it: JSON-RPC, every answer checked, and the reason when it is gone.

import { setTimeout as sleep } from 'node:timers/promises'
import { ResponseError } from 'vscode-jsonrpc/node.js'
import { Failure, type FailureCode } from '../../shared/failures.ts'
import {
  GATE,
  SESSION_ENDED,
  sessionEnded,
  type GateMethod,
  type GateParams,
  type GateResult,
} from '../../shared/gate.ts'
import { responseToFailure, rpcConnection } from '../../shared/rpc.ts'
import { GRACE_MS } from './carrier.ts'
import { harmless } from './harmless.ts'
import { orAborted } from './or-aborted.ts'
import type { Transport } from './transport.ts'

/** The source's word that a session ended, safe to print. */
export interface Ended {
  readonly token: string
  readonly code: string
  readonly reason: string
  readonly remedy?: string | undefined
}

export interface GateLink extends AsyncDisposable {
  /** Fires with a Failure when it is gone, or spoke nonsense. */
  readonly lost: AbortSignal
  /** Whether it was lost because it spoke nonsense, which another one would speak too. */
  isNonsense(): boolean
  /** As `Gate.call`, by this link alone; rejects with the reason of `lost` when it is gone. */
  call<M extends GateMethod>(
    method: M,
    params: GateParams<M>,
    signal: AbortSignal,
  ): Promise<GateResult<M>>
  /** Ends it without waiting for what it has to say. */
  abandon(): void
}

/**
 * Starts a source's gate; disposing ends it. @param where the source, for messages
 * @throws Failure SOURCE_UNREACHABLE, and as the transport's; the signal's reason
 */
export async function openLink(
  where: string,
  transport: Transport,
  onEnded: (ended: Ended) => void,
  signal: AbortSignal,
): Promise<GateLink> {
  const carrier = await transport.startGate(signal)
  const lost = new AbortController()
  const rpc = rpcConnection(carrier.output, carrier.input)
  const gone = (detail: string, code: FailureCode = 'SOURCE_UNREACHABLE', remedy?: string): void =>
    lost.abort(new Failure(code, `${where}: its gate is gone: ${detail}`, { remedy }))
  void carrier.over.then(({ code, reason, remedy }) => gone(reason, code, remedy))
  let nonsense = false
  rpc.onError(([error]) => {
    // A broken pipe, or a stream that ends early, is followed by the end, which knows the reason.
    if ('syscall' in error || error instanceof Failure) return
    nonsense = true
    gone(error.message)
  })
  // A closed stream is followed by the end, which knows the reason; what stays is ended.
  rpc.onClose(() => carrier.abandon())

  rpc.onNotification(SESSION_ENDED, (message: unknown) => {
    const ended = sessionEnded.safeParse(message)
    if (ended.success) onEnded(harmless(ended.data))
  })
  rpc.listen()

  const ask = async (method: GateMethod, params: object): Promise<unknown> => {
    try {
      return await rpc.sendRequest<unknown>(method, params)
    } catch (error) {
      // A connection that closed is followed by the end, whose last words say more.
      if (!(error instanceof ResponseError)) await aborted(lost.signal, GRACE_MS)
      lost.signal.throwIfAborted()
      const { code, message, remedy } = responseToFailure(error, 'SOURCE_UNREACHABLE')
      throw new Failure(code, harmless(message), { cause: error, remedy: harmless(remedy) })
    }
  }

  return {
    lost: lost.signal,
    isNonsense: () => nonsense,
    async call(method, params, signal) {
      const stop = AbortSignal.any([signal, lost.signal])
      stop.throwIfAborted()
      const raw = await orAborted(ask(method, GATE[method].params.parse(params)), stop)
      const result = GATE[method].result.safeParse(raw)
      // XML and variables are kept as they came; everything else may end on a terminal.
      if (result.success)
        return (method === 'session.info' ? result.data : harmless(result.data)) as GateResult<
          typeof method
        >
      const issue = result.error.issues[0]
      throw new Failure(
        'TRANSFER',
        `${where}: its gate answered ${method} wrongly: ${issue?.path.join('.') ?? ''}: ${issue?.message ?? ''}`,
        { cause: result.error, remedy: 'run the same version of nbd-clone on both hosts' },
      )
    },
    abandon: () => carrier.abandon(),
    async [Symbol.asyncDispose]() {
      rpc.end()
      rpc.dispose()
      await carrier[Symbol.asyncDispose]()
    },
  }
}

/** Waits until a signal fires, at most so long. */
async function aborted(signal: AbortSignal, timeoutMs: number): Promise<void> {
  await sleep(timeoutMs, undefined, { signal }).catch(() => undefined)
}
