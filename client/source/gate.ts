// The gate as the standby sees it: one child that speaks JSON-RPC on its stdio, a heartbeat, and typed calls.

import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { ResponseError } from 'vscode-jsonrpc/node.js'
import { Failure, isFailureCode } from '../../shared/failures.ts'
import {
  GATE,
  SESSION_ENDED,
  sessionEnded,
  type GateMethod,
  type GateParams,
  type GateResult,
} from '../../shared/gate.ts'
import { responseToFailure, rpcConnection } from '../../shared/rpc.ts'
import type { Source } from '../config/schema.ts'
import { gateCommand } from './gate-command.ts'

/** The lease is renewed every 10 s and lapses after 30 s. */
const HEARTBEAT_MS = 10_000
/** session.open may wait 120 s for a running merge; a gate that is silent for longer than this is gone. */
const ANSWER_MS = 150_000
const GRACE_MS = 3_000

export interface Gate extends AsyncDisposable {
  /**
   * Asks the source. @throws Failure with the source's code; TRANSFER when it answers nonsense; SOURCE_UNREACHABLE
   * when it is gone or silent; the signal's reason when that fires first
   */
  call<M extends GateMethod>(
    method: M,
    params: GateParams<M>,
    options?: { signal?: AbortSignal | undefined; timeoutMs?: number },
  ): Promise<GateResult<M>>
  /** Renews the lease every 10 s until the returned function is called; its loss is told by `onLost`. */
  keepLease(token: string, onLost: (reason: Failure) => void): () => void
}

/** Starts a source's gate. The child is ended by disposing. @throws Failure SOURCE_UNREACHABLE */
export async function openGate(source: Source & { readonly name: string }): Promise<Gate> {
  const [file, ...args] = gateCommand(source)
  // A process group of its own, so that Ctrl-C reaches us alone and the session can still be released.
  const child = spawn(file ?? '', args, { stdio: ['pipe', 'pipe', 'pipe'], detached: true })
  const where = `source ${source.name}`
  const lastWords = keepReason(child)
  try {
    await once(child, 'spawn')
  } catch (error) {
    throw new Failure('SOURCE_UNREACHABLE', `${where}: cannot start its gate: ${String(error)}`, {
      cause: error,
    })
  }

  // A kill that fails must not end the program.
  child.on('error', () => undefined)
  const lost = new AbortController()
  const rpc = rpcConnection(child.stdout, child.stdin)
  const gone = (detail: string): void =>
    lost.abort(new Failure('SOURCE_UNREACHABLE', `${where}: its gate is gone: ${detail}`))
  child.once('close', (code, signal) =>
    gone(harmless(lastWords()) || `it ended with ${signal ?? `exit status ${String(code)}`}`),
  )
  rpc.onError(([error]) => {
    // A broken pipe is followed by the child's end, which knows the reason.
    if (!('syscall' in error)) gone(error.message)
  })
  // A closed stream is followed by the child's end, which knows the reason; a child that stays is ended.
  rpc.onClose(() => child.kill('SIGTERM'))

  const leases = new Map<string, (reason: Failure) => void>()
  rpc.onNotification(SESSION_ENDED, (message: unknown) => {
    const ended = sessionEnded.safeParse(message)
    if (!ended.success) return
    const { token, code: given, reason, remedy } = harmless(ended.data)
    const code = isFailureCode(given) ? given : 'TRANSFER'
    leases.get(token)?.(
      new Failure(code, `${where}: the session ended under the pull: ${reason}`, { remedy }),
    )
  })
  rpc.listen()

  const ask = async (method: GateMethod, params: object): Promise<unknown> => {
    try {
      return await rpc.sendRequest<unknown>(method, params)
    } catch (error) {
      // A connection that closed is followed by the child's end, whose last words say more.
      if (!(error instanceof ResponseError)) await aborted(lost.signal, GRACE_MS)
      lost.signal.throwIfAborted()
      const { code, message, remedy } = responseToFailure(error, 'SOURCE_UNREACHABLE')
      throw new Failure(code, harmless(message), { cause: error, remedy: harmless(remedy) })
    }
  }

  const call: Gate['call'] = async (method, params, options = {}) => {
    options.signal?.throwIfAborted()
    lost.signal.throwIfAborted()
    const answer = ask(method, GATE[method].params.parse(params))
    const signals = options.signal ? [options.signal, lost.signal] : [lost.signal]
    const raw = await firstOf(answer, signals, options.timeoutMs ?? ANSWER_MS, method)
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
  }

  return {
    call,
    keepLease(token, onLost) {
      let kept = true
      // A renewal may still be under way when the session is released; what becomes of it is no loss then.
      const tell = (reason: Failure): void => {
        if (kept) onLost(reason)
      }
      leases.set(token, tell)
      const onGone = (): void => tell(lost.signal.reason as Failure)
      lost.signal.addEventListener('abort', onGone, { once: true })
      const timer = setInterval(() => {
        call('session.renew', { token }, { timeoutMs: 3 * HEARTBEAT_MS }).catch((error: unknown) =>
          tell(responseToFailure(error, 'SOURCE_UNREACHABLE')),
        )
      }, HEARTBEAT_MS)
      return () => {
        kept = false
        clearInterval(timer)
        leases.delete(token)
        lost.signal.removeEventListener('abort', onGone)
      }
    },
    async [Symbol.asyncDispose]() {
      rpc.end()
      rpc.dispose()
      await endChild(child)
    },
  }
}

/** The longest text of a peer that is passed on. */
const MAX_TEXT = 4000

/** A peer's words, at any depth, made safe for a terminal and a history line: no control characters, no end of them. */
function harmless<T>(value: T): T {
  const clean = (one: unknown): unknown =>
    typeof one === 'string'
      ? one.replace(/[^\P{Cc}\n\t]|\p{Cf}/gu, ' ').slice(0, MAX_TEXT)
      : Array.isArray(one)
        ? one.map(clean)
        : one !== null && typeof one === 'object'
          ? Object.fromEntries(Object.entries(one).map(([key, inner]) => [key, clean(inner)]))
          : one
  return clean(value) as T
}

/** The answer, or whatever ends the waiting first; listeners and timer never outlive it. */
async function firstOf<T>(
  answer: Promise<T>,
  signals: AbortSignal[],
  timeoutMs: number,
  method: string,
): Promise<T> {
  const stop = AbortSignal.any(signals)
  stop.throwIfAborted()
  const waited = new AbortController()
  try {
    return await Promise.race([
      answer,
      sleep(timeoutMs, undefined, { signal: AbortSignal.any([waited.signal, stop]) }).then(
        () => {
          throw new Failure(
            'SOURCE_UNREACHABLE',
            `the source's gate did not answer ${method} within ${timeoutMs / 1000} s`,
          )
        },
        () => {
          throw stop.reason
        },
      ),
    ])
  } finally {
    answer.catch(() => undefined)
    waited.abort()
  }
}

/** Waits until a signal fires, at most so long. */
async function aborted(signal: AbortSignal, timeoutMs: number): Promise<void> {
  await sleep(timeoutMs, undefined, { signal }).catch(() => undefined)
}

/** Ends a gate: closed stdin first, then SIGTERM, then SIGKILL. */
async function endChild(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const exited = once(child, 'exit')
  child.stdin?.end()
  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    const waited = new AbortController()
    const late = sleep(GRACE_MS, 'late', { signal: waited.signal }).catch(() => undefined)
    const first = await Promise.race([exited, late])
    waited.abort()
    if (first !== 'late') return
    child.kill(signal)
  }
  await exited
}

/**
 * Follows stderr (its last 4 KiB) for the reason when the child dies: its last line that is not indented, because our
 * own programs put hint and code under their sentence.
 */
function keepReason(child: ChildProcess): () => string {
  let tail = ''
  child.stderr?.setEncoding('utf8').on('data', (text: string) => {
    tail = (tail + text).slice(-4096)
  })
  return () =>
    tail
      .split('\n')
      .filter(line => /^\S/.test(line))
      .at(-1)
      ?.trim() ?? ''
}
