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

/** Says one word to serve and returns its answer. @throws Failure as serve gave it, or SOURCE_UNREACHABLE */
export async function askServe<M extends Method>(
  socketPath: string,
  role: Role,
  method: M,
  params: Params<M>,
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
  connection.listen()
  try {
    const answer: unknown = await Promise.race([connection.sendRequest(method, params), lost])
    return WORDS[method].result.parse(answer) as Result<M>
  } catch (error) {
    throw error instanceof Failure
      ? error
      : responseToFailure(toFailure(error).cause ?? error, 'INTERNAL')
  } finally {
    connection.dispose()
    socket.destroy()
  }
}
