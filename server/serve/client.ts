// Talking to serve: what hook, gate, status, session and recover do. None of them decides anything.

import { connect, type Socket } from 'node:net'
import { Failure, toFailure } from '../../shared/failures.ts'
import { responseToFailure, rpcConnection } from '../../shared/rpc.ts'
import { WORDS, type Method, type Params, type Result, type Role } from './words.ts'

/** Connects to serve's socket and says the role. @throws Failure SOURCE_UNREACHABLE when serve does not run */
export async function connectToServe(socketPath: string, role: Role): Promise<Socket> {
  const socket = connect(socketPath)
  await new Promise<void>((resolve, reject) => {
    socket.once('connect', resolve)
    socket.once('error', (error: NodeJS.ErrnoException) => {
      const missing = error.code === 'ENOENT' || error.code === 'ECONNREFUSED'
      const message = missing
        ? `clone-server serve is not running on this host (nothing listens on ${socketPath})`
        : `cannot reach clone-server serve on ${socketPath}: ${error.code ?? error.message}`
      reject(
        new Failure('SOURCE_UNREACHABLE', message, {
          cause: error,
          remedy:
            'systemctl start clone-server; without the unit, in a terminal that stays: clone-server serve',
        }),
      )
    })
  })
  socket.write(`${JSON.stringify(role)}\n`)
  return socket
}

/** Milliseconds, for what serve answers at once or not at all; every other word may have to wait for a merge. */
const ANSWER_MS: { readonly [M in Method]?: number } = { 'operator.status': 10_000 }

/**
 * Says one word to serve and returns its answer.
 * @throws Failure as serve gave it, or SOURCE_UNREACHABLE; also when it hangs and does not say its status within 10 s
 */
export async function askServe<M extends Method>(
  socketPath: string,
  role: Role,
  method: M,
  params: Params<M>,
  answerMs = ANSWER_MS[method],
): Promise<Result<M>> {
  const socket = await connectToServe(socketPath, role)
  const connection = rpcConnection(socket, socket)
  connection.onError(() => undefined)
  // vscode-jsonrpc leaves requests pending when the peer goes away, so a lost serve is told here.
  const lost = new Promise<never>((_, reject) => {
    connection.onClose(() =>
      reject(new Failure('SOURCE_UNREACHABLE', 'clone-server serve went away before it answered')),
    )
  })
  lost.catch(() => undefined)
  const answered = new AbortController()
  const late = tooLate(answerMs, answered.signal)
  connection.listen()
  try {
    const answer: unknown = await Promise.race([connection.sendRequest(method, params), lost, late])
    return WORDS[method].result.parse(answer) as Result<M>
  } catch (error) {
    throw error instanceof Failure
      ? error
      : responseToFailure(toFailure(error).cause ?? error, 'INTERNAL')
  } finally {
    answered.abort()
    connection.dispose()
    socket.destroy()
  }
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
