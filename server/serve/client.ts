// Talking to serve: what hook, gate, status, session and recover do. None of them decides anything.

import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { hostname } from 'node:os'
import { setTimeout as delay } from 'node:timers/promises'
import { Failure, toFailure } from '../../shared/failures.ts'
import { responseToFailure, rpcConnection } from '../../shared/rpc.ts'
import { WORDS, type Method, type Params, type Result, type Role, type RpcRole } from './words.ts'

/** A socket that more want to reach at once than its queue holds says EAGAIN; serve empties the queue in no time. */
const BUSY_MS = 60_000
const BUSY_AGAIN_MS = { first: 20, most: 500 }

/** Connects to serve's socket and says the role. @throws Failure SOURCE_UNREACHABLE when serve does not run */
export async function connectToServe(socketPath: string, role: Role): Promise<Socket> {
  const end = Date.now() + BUSY_MS
  for (let wait = BUSY_AGAIN_MS.first; ; wait = Math.min(wait * 2, BUSY_AGAIN_MS.most)) {
    try {
      const socket = await connected(socketPath)
      socket.write(`${JSON.stringify(role)}\n`)
      return socket
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException
      if (code === 'EAGAIN' && Date.now() < end) {
        await delay(wait * (0.5 + Math.random()))
        continue
      }
      const missing = code === 'ENOENT' || code === 'ECONNREFUSED'
      const what = missing
        ? `clone-server serve is not running on ${hostname()} (nothing listens on ${socketPath})`
        : `cannot reach clone-server serve on ${socketPath}: ${code ?? message}`
      throw new Failure('SOURCE_UNREACHABLE', what, {
        cause: error,
        remedy:
          'there: systemctl start clone-server; without the unit, in a terminal that stays: clone-server serve',
      })
    }
  }
}

async function connected(socketPath: string): Promise<Socket> {
  const socket = connect(socketPath)
  await once(socket, 'connect')
  return socket
}

/** Milliseconds, for what serve answers at once or not at all; every other word may have to wait for a merge. */
const ANSWER_MS: { readonly [M in Method]?: number } = {
  'operator.status': 10_000,
  'operator.endClient': 10_000,
}

export interface ServeLink extends Disposable {
  /** Says one word and returns its answer. @throws Failure as serve gave it, or SOURCE_UNREACHABLE */
  ask<M extends Method>(method: M, params: Params<M>, answerMs?: number): Promise<Result<M>>
  /** Aborts, with a Failure, when serve ends the connection. */
  readonly lost: AbortSignal
}

/** Opens a connection for more than one word. @throws Failure SOURCE_UNREACHABLE when serve does not run */
export async function openServeLink(socketPath: string, role: RpcRole): Promise<ServeLink> {
  const socket = await connectToServe(socketPath, role)
  const connection = rpcConnection(socket, socket)
  connection.onError(() => undefined)
  const lost = new AbortController()
  connection.onClose(() =>
    lost.abort(
      new Failure('SOURCE_UNREACHABLE', 'clone-server serve went away before it answered'),
    ),
  )
  connection.listen()
  return {
    lost: lost.signal,
    async ask(method, params, answerMs = ANSWER_MS[method]) {
      const answered = new AbortController()
      try {
        const answer: unknown = await Promise.race([
          connection.sendRequest(method, params),
          // vscode-jsonrpc leaves requests pending when the peer goes away, so a lost serve is told here.
          rejectOn(lost.signal, answered.signal),
          tooLate(answerMs, answered.signal),
        ])
        return WORDS[method].result.parse(answer) as Result<typeof method>
      } catch (error) {
        throw error instanceof Failure
          ? error
          : responseToFailure(toFailure(error).cause ?? error, 'INTERNAL')
      } finally {
        answered.abort()
      }
    },
    [Symbol.dispose]() {
      connection.dispose()
      socket.destroy()
    },
  }
}

/**
 * Says one word to serve and returns its answer.
 * @throws Failure as serve gave it, or SOURCE_UNREACHABLE; also when it hangs and does not say its status within 10 s
 */
export async function askServe<M extends Method>(
  socketPath: string,
  role: RpcRole,
  method: M,
  params: Params<M>,
  answerMs?: number,
): Promise<Result<M>> {
  using link = await openServeLink(socketPath, role)
  return await link.ask(method, params, answerMs)
}

/** Rejects with a signal's reason; never settles once the other one has come. */
function rejectOn(signal: AbortSignal, over: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    const tell = (): void => reject(signal.reason as Failure)
    if (signal.aborted) tell()
    else signal.addEventListener('abort', tell, { signal: over })
  })
}

/** Rejects when so much time has passed; never settles when there is no limit, or the signal came first. */
function tooLate(limitMs: number | undefined, answered: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    if (limitMs === undefined) return
    const timer = setTimeout(
      () =>
        reject(
          new Failure(
            'SOURCE_UNREACHABLE',
            `clone-server serve runs but does not answer within ${limitMs / 1000} s`,
            {
              remedy:
                'systemctl restart clone-server, and keep its log: journalctl -u clone-server',
            },
          ),
        ),
      limitMs,
    )
    answered.addEventListener('abort', () => clearTimeout(timer), { once: true })
  })
}
