// One child that is a source's gate: JSON-RPC on its stdio, every answer checked, and the reason when it is gone.

import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { ResponseError } from 'vscode-jsonrpc/node.js'
import { Failure } from '../../shared/failures.ts'
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

const GRACE_MS = 3_000

export type NamedSource = Source & { readonly name: string }

/** The source's word that a session ended, safe to print. */
export interface Ended {
  readonly token: string
  readonly code: string
  readonly reason: string
  readonly remedy?: string | undefined
}

export interface GateLink extends AsyncDisposable {
  /** Fires with a Failure when the child is gone, or spoke nonsense. */
  readonly lost: AbortSignal
  /** Whether it was lost because it spoke nonsense, which another child would speak too. */
  isNonsense(): boolean
  /** As `Gate.call`, by this child alone; rejects with the reason of `lost` when it is gone. */
  call<M extends GateMethod>(
    method: M,
    params: GateParams<M>,
    signal: AbortSignal,
  ): Promise<GateResult<M>>
  /** Ends the child without waiting for what it has to say. */
  abandon(): void
}

/** Starts a source's gate. The child is ended by disposing. @throws Failure SOURCE_UNREACHABLE */
export async function openLink(
  source: NamedSource,
  onEnded: (ended: Ended) => void,
): Promise<GateLink> {
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
  let nonsense = false
  rpc.onError(([error]) => {
    // A broken pipe is followed by the child's end, which knows the reason.
    if ('syscall' in error) return
    nonsense = true
    gone(error.message)
  })
  // A closed stream is followed by the child's end, which knows the reason; a child that stays is ended.
  rpc.onClose(() => child.kill('SIGTERM'))

  rpc.onNotification(SESSION_ENDED, (message: unknown) => {
    const ended = sessionEnded.safeParse(message)
    if (ended.success) onEnded(harmless(ended.data))
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
    abandon: () => void child.kill('SIGTERM'),
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

/** What a promise gives, or the signal's reason when that fires first; no listener outlives it. */
export async function orAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  promise.catch(() => undefined)
  signal.throwIfAborted()
  let stop = (): void => undefined
  const stopped = new Promise<void>(resolve => (stop = resolve))
  signal.addEventListener('abort', stop, { once: true })
  try {
    return await Promise.race([
      promise,
      stopped.then(() => {
        throw signal.reason
      }),
    ])
  } finally {
    signal.removeEventListener('abort', stop)
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
