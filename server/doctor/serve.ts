// Whether serve runs, and what it says of its domains; a serve that hangs must not make doctor hang.

import { Failure, toFailure } from '../../shared/failures.ts'
import { rpcConnection } from '../../shared/rpc.ts'
import { connectToServe } from '../serve/client.ts'
import { OPERATOR, type DomainStatus } from '../serve/words.ts'
import { fail, pass, warn, type Outcome } from './finding.ts'

const ANSWER_MS = 10_000

export type ServeFacts =
  | { readonly kind: 'running'; readonly domains: readonly DomainStatus[] }
  | { readonly kind: 'not running' }
  | { readonly kind: 'broken'; readonly failure: Failure }

/** Asks serve for its status, at most 10 s. Never rejects. */
export async function askForStatus(socketPath: string, answerMs = ANSWER_MS): Promise<ServeFacts> {
  try {
    const socket = await connectToServe(socketPath, { role: 'operator' })
    const connection = rpcConnection(socket, socket)
    connection.onError(() => undefined)
    const lost = new Promise<never>((_, reject) => {
      socket.setTimeout(answerMs, () =>
        reject(new Failure('SOURCE_UNREACHABLE', `it does not answer within ${answerMs / 1000} s`)),
      )
      connection.onClose(() =>
        reject(new Failure('SOURCE_UNREACHABLE', 'it went away before it answered')),
      )
    })
    connection.listen()
    try {
      const answer: unknown = await Promise.race([
        connection.sendRequest('operator.status', {}),
        lost,
      ])
      return {
        kind: 'running',
        domains: OPERATOR['operator.status'].result.parse(answer).domains,
      }
    } finally {
      lost.catch(() => undefined)
      connection.dispose()
      socket.destroy()
    }
  } catch (error) {
    const failure = toFailure(error)
    const cause = failure.cause as NodeJS.ErrnoException | undefined
    if (cause?.code === 'ENOENT' || cause?.code === 'ECONNREFUSED') return { kind: 'not running' }
    return { kind: 'broken', failure }
  }
}

export function judgeServe(serve: ServeFacts): Outcome {
  if (serve.kind === 'not running')
    return warn(
      'not running: nothing can be pulled',
      'systemctl start clone-server, or in a terminal: clone-server serve',
    )
  if (serve.kind === 'broken')
    return fail(
      `its socket is there, but: ${serve.failure.message}`,
      'systemctl restart clone-server, and keep its log: journalctl -u clone-server',
      'SOURCE_UNREACHABLE',
    )
  const busy = serve.domains.filter(one => one.state !== 'idle')
  const words = busy.map(one => `${one.domain} ${one.state}`)
  return pass(
    `running, ${serve.domains.length} domain(s)${words.length > 0 ? `: ${words.join(', ')}` : ''}`,
  )
}
