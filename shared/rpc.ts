// JSON-RPC 2.0 over any byte stream, one message per line, so that a peer's claim can never make us buffer more than
// one bounded line. Used on serve.sock and through the gate; the methods are in gate.ts.

import type { Readable, Writable } from 'node:stream'
import {
  AbstractMessageReader,
  AbstractMessageWriter,
  createMessageConnection,
  ResponseError,
  type DataCallback,
  type Disposable,
  type Message,
  type MessageConnection,
} from 'vscode-jsonrpc/node.js'
import { z } from 'zod'
import { Failure, isFailureCode, toFailure } from './failures.ts'

/** Gate message at most 4 MiB. */
export const MAX_MESSAGE = 4 * 1024 * 1024

/**
 * JSON-RPC 2.0's own shapes and no others: the library trusts what it is handed, and its `$/` methods (cancel, progress)
 * throw on params that they do not like.
 */
const envelope = z.union([
  z.looseObject({
    jsonrpc: z.literal('2.0'),
    method: z.string().regex(/^[A-Za-z][A-Za-z.-]{0,99}$/),
    id: z.union([z.string(), z.number()]).optional(),
    params: z.union([z.record(z.string(), z.unknown()), z.array(z.unknown())]).optional(),
  }),
  z.looseObject({
    jsonrpc: z.literal('2.0'),
    method: z.never().optional(),
    id: z.union([z.string(), z.number(), z.null()]),
    error: z.looseObject({ code: z.number(), message: z.string() }).optional(),
  }),
])

function isEnvelope(message: unknown): boolean {
  return envelope.safeParse(message).success
}

/** A peer that asks and never reads is cut off when so much waits for it. */
const MAX_UNREAD = 4 * MAX_MESSAGE

/** A line that comes byte by byte must not cost an object for each. */
const MOST_PARTS = 10_000

class LineReader extends AbstractMessageReader {
  readonly #input: Readable

  constructor(input: Readable) {
    super()
    this.#input = input
  }

  listen(callback: DataCallback): Disposable {
    let parts: Buffer[] = []
    let length = 0
    let rest: Buffer = Buffer.alloc(0)
    let over = false
    const fail = (message: string): void => {
      this.fireError(new Error(message))
      this.#input.destroy()
    }
    /**
     * Hands on one message a turn, which is what the library handles: it would keep a queue without limit. Meanwhile the
     * stream waits, and with it a peer that floods.
     */
    const next = (): void => {
      if (over || this.#input.destroyed) return
      const end = rest.indexOf(10)
      if (end === -1) {
        parts.push(rest)
        length += rest.length
        if (parts.length > MOST_PARTS) parts = [Buffer.concat(parts)]
        rest = Buffer.alloc(0)
        if (length > MAX_MESSAGE) fail(`peer sent a message over ${MAX_MESSAGE} bytes`)
        else this.#input.resume()
        return
      }
      const line = Buffer.concat([...parts, rest.subarray(0, end)]).toString('utf8')
      rest = rest.subarray(end + 1)
      parts = []
      length = 0
      const message = line.trim() === '' ? undefined : parseMessage(line)
      if (typeof message === 'string') {
        fail(message)
        return
      }
      if (message) callback(message)
      if (rest.length > 0) setImmediate(next)
      else this.#input.resume()
    }
    const onData = (chunk: Buffer): void => {
      this.#input.pause()
      rest = chunk
      next()
    }
    const onClose = (): void => this.fireClose()
    this.#input.on('data', onData)
    this.#input.on('close', onClose)
    this.#input.on('end', onClose)
    this.#input.on('error', error => this.fireError(error))
    return {
      dispose: () => {
        over = true
        this.#input.off('data', onData).off('close', onClose).off('end', onClose)
      },
    }
  }
}

/** @returns what is wrong with the line, as a sentence, when it is no message */
function parseMessage(line: string): Message | string {
  let message: unknown
  try {
    message = JSON.parse(line)
  } catch {
    return `peer sent a line that is not JSON: ${JSON.stringify(line.slice(0, 80))}`
  }
  return isEnvelope(message) ? (message as Message) : 'peer sent JSON that is no JSON-RPC message'
}

class LineWriter extends AbstractMessageWriter {
  readonly #output: Writable

  constructor(output: Writable) {
    super()
    this.#output = output
    output.on('error', error => this.fireError(error))
    output.on('close', () => this.fireClose())
  }

  /** Never rejects, because vscode-jsonrpc lets a rejected write escape unhandled: errors end the stream instead. */
  write(message: Message): Promise<void> {
    const line = JSON.stringify(message) + '\n'
    return new Promise(resolve => {
      const tooLong = Buffer.byteLength(line) > MAX_MESSAGE
      if (tooLong || this.#output.writableLength > MAX_UNREAD) {
        this.#output.destroy(
          new Error(
            tooLong ? `message over ${MAX_MESSAGE} bytes` : 'the peer does not read its answers',
          ),
        )
        resolve()
        return
      }
      this.#output.write(line, () => resolve())
    })
  }

  end(): void {
    this.#output.end()
  }
}

/** Opens an RPC connection; the caller registers handlers, then calls `listen()`. */
export function rpcConnection(input: Readable, output: Writable): MessageConnection {
  return createMessageConnection(new LineReader(input), new LineWriter(output))
}

/** Application errors on the wire: a Failure's code and remedy travel in `data`. */
const FAILURE = -32000

export function failureToResponse(
  error: unknown,
): ResponseError<{ code: string; remedy?: string }> {
  const failure = toFailure(error)
  return new ResponseError(FAILURE, failure.message, {
    code: failure.code,
    ...(failure.remedy === undefined ? {} : { remedy: failure.remedy }),
  })
}

/** The peer's error as a Failure. @param fallback code for errors that carry none (a lost connection) */
export function responseToFailure(
  error: unknown,
  fallback: 'SOURCE_UNREACHABLE' | 'INTERNAL',
): Failure {
  if (error instanceof Failure) return error
  if (error instanceof ResponseError) {
    const data = error.data as { code?: unknown; remedy?: unknown } | undefined
    if (isFailureCode(data?.code)) {
      const remedy = typeof data.remedy === 'string' ? data.remedy : undefined
      return new Failure(data.code, error.message, { cause: error, remedy })
    }
  }
  const reason = error instanceof Error ? error.message : String(error)
  return new Failure(fallback, `the source's gate did not answer: ${reason}`, { cause: error })
}
