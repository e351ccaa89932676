// Registers handlers for words of the table: params are validated before, failures travel as code and remedy.

import type { MessageConnection } from 'vscode-jsonrpc/node.js'
import { Failure } from '../../shared/failures.ts'
import { failureToResponse } from '../../shared/rpc.ts'
import { WORDS, type Method, type Params, type Result } from './words.ts'

export type Handlers = {
  readonly [M in Method]?: (params: Params<M>) => Promise<Result<M>> | Result<M>
}

/** More than an honest client asks at once (4 digests for each of 256 disks); each costs a promise and perhaps a timer. */
const MOST_AT_ONCE = 2048

/** Answers each method of `handlers`; any other gets JSON-RPC's own "unhandled method". */
export function handle(connection: MessageConnection, handlers: Handlers): void {
  let waiting = 0
  for (const [method, handler] of Object.entries(handlers) as [
    Method,
    (params: never) => unknown,
  ][])
    connection.onRequest(method, async (raw: unknown) => {
      waiting++
      try {
        if (waiting > MOST_AT_ONCE)
          throw new Failure('SOURCE_REFUSED', `more than ${MOST_AT_ONCE} questions at once`)
        const parsed = WORDS[method].params.safeParse(raw)
        if (!parsed.success) {
          const issue = parsed.error.issues[0]
          throw new Failure(
            'USAGE',
            `${method}: ${issue?.path.join('.') ?? ''}: ${issue?.message ?? 'refused'}`,
          )
        }
        return await handler(parsed.data as never)
      } catch (error) {
        return failureToResponse(error)
      } finally {
        waiting--
      }
    })
}
