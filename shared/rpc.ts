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

/** What one peer may have asked and not been answered yet: more than any client of ours asks at once. */
const MAX_ASKED = 1000
const MAX_ASKED_BYTES = 2 * MAX_MESSAGE

type Id = string | number

/** What was asked and is not answered yet; a peer that asks more is not read until it has answers. */
class Asked {
  readonly #bytes = new Map<Id, number>()
  #total = 0
  #onRoom: (() => void) | undefined

  has(id: Id): boolean {
    return this.#bytes.has(id)
  }

  add(id: Id, bytes: number): void {
    this.#bytes.set(id, bytes)
    this.#total += bytes
  }

  answered(id: Id): void {
    this.#total -= this.#bytes.get(id) ?? 0
    this.#bytes.delete(id)
    if (!this.isFull()) this.#onRoom?.()
  }

  isFull(): boolean {
    return this.#bytes.size >= MAX_ASKED || this.#total >= MAX_ASKED_BYTES
  }

  /** Calls back, again and again, when there is room. */
  whenRoom(call: () => void): void {
    this.#onRoom = call
  }
}

/** Hands over one message per turn of the event loop, as fast as they are worked at, and reads no more meanwhile. */
class LineReader extends AbstractMessageReader {
  readonly #input: Readable
  readonly #asked: Asked

  constructor(input: Readable, asked: Asked) {
    super()
    this.#input = input
    this.#asked = asked
  }

  listen(callback: DataCallback): Disposable {
    const input = this.#input
    /** Parts of a line that has not ended, and what came after one that is not handed over yet. */
    let parts: Buffer[] = []
    let length = 0
    let rest: Buffer | undefined
    let turn: NodeJS.Immediate | undefined
    let over = false

    const fail = (message: string): void => {
      over = true
      rest = undefined
      parts = []
      this.fireError(new Error(message))
      input.destroy()
    }
    /** Hands over the next message that is whole. @returns whether there was one */
    const next = (): boolean => {
      for (;;) {
        const end = rest?.indexOf(10) ?? -1
        const part = end === -1 ? rest : rest?.subarray(0, end)
        rest = end === -1 ? undefined : rest?.subarray(end + 1)
        if (part) parts.push(part)
        length += part?.length ?? 0
        if (length > MAX_MESSAGE) fail(`peer sent a message over ${MAX_MESSAGE} bytes`)
        if (end === -1 || over) return false
        const line = Buffer.concat(parts).toString('utf8')
        const bytes = length
        parts = []
        length = 0
        if (line.trim() === '') continue
        this.#take(line, bytes, callback, fail)
        return !over
      }
    }
    const pump = (): void => {
      if (over || turn) return
      if (this.#asked.isFull()) return
      if (!next()) {
        input.resume()
        return
      }
      turn = setImmediate(() => {
        turn = undefined
        pump()
      })
      input.pause()
    }
    const onData = (chunk: Buffer): void => {
      rest = rest ? Buffer.concat([rest, chunk]) : chunk
      input.pause()
      pump()
    }
    /** What came before the end counts. */
    const onClose = (): void => {
      while (!over && next());
      this.fireClose()
    }
    this.#asked.whenRoom(pump)
    input.on('data', onData).on('close', onClose).on('end', onClose)
    input.on('error', error => this.fireError(error))
    return {
      dispose: () => {
        over = true
        clearImmediate(turn)
        input.off('data', onData).off('close', onClose).off('end', onClose)
      },
    }
  }

  #take(line: string, bytes: number, callback: DataCallback, fail: (why: string) => void): void {
    let message: unknown
    try {
      message = JSON.parse(line)
    } catch {
      fail(`peer sent a line that is not JSON: ${JSON.stringify(line.slice(0, 80))}`)
      return
    }
    if (!isEnvelope(message)) {
      fail('peer sent JSON that is no JSON-RPC message')
      return
    }
    const { method, id } = message as { method?: string; id?: Id }
    if (method !== undefined && id !== undefined) {
      if (this.#asked.has(id)) {
        fail(`peer asks twice under one id: ${JSON.stringify(id).slice(0, 80)}`)
        return
      }
      this.#asked.add(id, bytes)
    }
    callback(message as Message)
  }
}

class LineWriter extends AbstractMessageWriter {
  readonly #output: Writable
  readonly #asked: Asked

  constructor(output: Writable, asked: Asked) {
    super()
    this.#output = output
    this.#asked = asked
    output.on('error', error => this.fireError(error))
    output.on('close', () => this.fireClose())
  }

  /** Never rejects, because vscode-jsonrpc lets a rejected write escape unhandled: errors end the stream instead. */
  write(message: Message): Promise<void> {
    const line = JSON.stringify(message) + '\n'
    const { method, id } = message as { method?: string; id?: Id | null }
    if (method === undefined && id !== undefined && id !== null) this.#asked.answered(id)
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
  const asked = new Asked()
  return createMessageConnection(new LineReader(input, asked), new LineWriter(output, asked))
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
