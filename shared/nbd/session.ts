// One connection's life: its state, what is in flight, and its one end. Every way out (a fault, the server's end of
// file, a stall, an abort, the caller) goes through #over, once.

import type { Duplex } from 'node:stream'
import { NBD_CMD_DISC } from './constants.ts'
import { optionBudget, type Decoder } from './decode.ts'
import { encodeRequests, type Request } from './encode.ts'
import { NbdError } from './faults.ts'
import { createFloor, type Floor } from './floor.ts'
import type { Peer } from './haggle.ts'
import type { Expected, ReplyTable } from './replies.ts'
import type { Receiver } from './transport.ts'

/**
 * greeting -> options -> ready -> closed, by NBD_CMD_DISC or by this side; dead from any of the first three, by a
 * fault or the server.
 */
export type State = 'greeting' | 'options' | 'ready' | 'dead' | 'closed'

export interface Pending extends Expected {
  /** Given by `submit`. */
  cookie: number
  /** Called once, when the reply is in, or with the reason why it never will be. */
  readonly settle: (error: Error | undefined) => void
}

export interface SessionOptions {
  readonly signal?: AbortSignal | undefined
  /** Milliseconds without a byte, with requests in flight. */
  readonly stallMs: number
}

/** How long the server's postrun may take after NBD_CMD_DISC, by default: it may merge a disk. */
export const DISCONNECT_MS = 180_000

/** What timers take; anything longer is as good as never. */
const MAX_DELAY_MS = 2 ** 31 - 1

export class Session implements Receiver, Peer, ReplyTable {
  state: State = 'greeting'
  structured = false
  contextIds: ReadonlySet<number> = new Set()
  readonly budget = optionBudget()
  /** Resolves, once, with the reason; undefined when this side ended it and the server agreed. */
  readonly closed: Promise<Error | undefined>

  readonly #streams: Duplex[] = []
  readonly #signal: AbortSignal | undefined
  readonly #stallMs: number
  readonly #floor: Floor
  readonly #inFlight = new Map<number, Pending>()
  readonly #spare = new Uint8Array(1)
  #settleClosed!: (reason: Error | undefined) => void
  #reason: Error | undefined

  #decoder: Decoder<unknown> | undefined
  #piece: Uint8Array = this.#spare
  #at = 0
  #running = false

  #cookie = 0
  #unsent: Request[] = []
  #lastByte = 0
  #deadline: NodeJS.Timeout | undefined
  #stall: NodeJS.Timeout | undefined
  #secondLook: NodeJS.Immediate | undefined
  #leaving = false
  #discSent = false

  constructor(options: SessionOptions) {
    this.#signal = options.signal
    this.#stallMs = options.stallMs
    this.#floor = createFloor(options.stallMs)
    this.closed = new Promise(resolve => (this.#settleClosed = resolve))
    if (this.#signal?.aborted) this.#onAbort()
    else this.#signal?.addEventListener('abort', this.#onAbort, { once: true })
  }

  isOver(): boolean {
    return this.state === 'dead' || this.state === 'closed'
  }

  /** The stream to write to from now on; all of them are destroyed at the end. */
  use(stream: Duplex): void {
    this.#streams.push(stream)
    if (this.isOver()) stream.destroy()
  }

  // Receiving.

  /** Runs a decoder over the bytes to come. Until the next one begins, any byte is a fault. */
  begin(decoder: Decoder<unknown>): void {
    if (this.isOver()) return
    this.#decoder = decoder
    this.#resume()
  }

  slot(): Uint8Array {
    return this.#at === 0 ? this.#piece : this.#piece.subarray(this.#at)
  }

  filled(length: number): boolean {
    if (this.isOver()) return false
    this.#lastByte = performance.now()
    this.#floor.came(length)
    this.#at += length
    if (this.#at === this.#piece.length) this.#resume()
    return !this.isOver()
  }

  ended(error?: Error): void {
    if (this.#discSent && !error) this.#over('closed', undefined)
    else this.fail(error instanceof NbdError ? error : lost(error, this.#inFlight.size))
  }

  #resume(): void {
    this.#at = 0
    this.#piece = this.#spare
    const decoder = this.#decoder
    this.#running = true
    try {
      if (!decoder) throw new NbdError('UNEXPECTED_REPLY', 'NBD: bytes that nobody asked for')
      const step = decoder.next()
      if (step.done) this.#decoder = undefined
      else if (!this.isOver()) this.#piece = step.value
    } catch (error) {
      this.fail(error as Error)
    }
    this.#running = false
  }

  // Sending.

  /**
   * What a running decoder says waits for the turn's end: a stream in this process may answer at once, which must
   * neither re-enter the decoder nor overtake bytes that are still being fed to it.
   */
  send(bytes: Uint8Array): void {
    if (this.isOver()) return
    if (this.#running) {
      queueMicrotask(() => this.send(bytes))
      return
    }
    if (this.state === 'greeting') this.state = 'options'
    this.#streams.at(-1)?.write(bytes)
  }

  /** Takes part in one write per turn; at most the callers' own requests wait in the stream, 28 bytes each. */
  submit(request: Pending): void {
    if (this.state !== 'ready' || this.#leaving) {
      request.settle(this.#reason ?? new NbdError('CLOSED', 'NBD: the connection is closed'))
      return
    }
    request.cookie = ++this.#cookie
    this.#inFlight.set(request.cookie, request)
    if (this.#inFlight.size === 1) this.#watchForStall()
    if (this.#unsent.push(request) === 1) queueMicrotask(() => this.#flush())
  }

  #flush(): void {
    const requests = this.#unsent
    this.#unsent = []
    if (requests.length > 0) this.send(encodeRequests(requests))
  }

  find(cookie: number): Pending | undefined {
    return this.#inFlight.get(cookie)
  }

  finish(request: Expected): void {
    const pending = this.#inFlight.get(request.cookie)
    this.#inFlight.delete(request.cookie)
    // A hole of a MiB takes few bytes, and is as good as its MiB.
    this.#floor.came(request.length)
    // "If the client receives an NBD_ESHUTDOWN error it MUST initiate a soft disconnect."
    if (request.error?.errno === 'NBD_ESHUTDOWN') void this.disconnect(DISCONNECT_MS)
    pending?.settle(request.error)
    if (this.#leaving) this.#sayGoodbye()
  }

  // Clocks.

  /** Fails the connection with `fault()` unless called again, or without arguments, within `ms`. */
  deadline(ms?: number, fault?: () => Error): void {
    clearTimeout(this.#deadline)
    this.#deadline = undefined
    if (ms === undefined || !fault || this.isOver()) return
    this.#deadline = setTimeout(() => this.fail(fault()), Math.min(ms, MAX_DELAY_MS))
  }

  /** One timer serves all requests: it looks when the last byte came, and goes when nothing is in flight. */
  #watchForStall(): void {
    this.#lastByte = performance.now()
    this.#floor.begin(this.#inFlight.values())
    this.#stall ??= setTimeout(this.#lookForStall, Math.min(this.#stallMs, MAX_DELAY_MS))
  }

  readonly #lookForStall = (): void => {
    this.#stall = undefined
    if (this.#inFlight.size === 0) return
    const from = Math.min(this.#lastByte, this.#floor.since)
    const left = from + this.#stallMs - performance.now()
    if (left > 0)
      this.#stall = setTimeout(this.#lookForStall, Math.min(Math.ceil(left), MAX_DELAY_MS))
    // When this process was busy, bytes may be waiting unread: look again after one turn of the event loop.
    else this.#secondLook = setImmediate(this.#confirmStall)
  }

  readonly #confirmStall = (): void => {
    clearTimeout(this.#stall)
    const whole = (since: number): boolean => performance.now() - since >= this.#stallMs
    const silent = whole(this.#lastByte)
    if (!silent && !(whole(this.#floor.since) && this.#floor.isBelow())) {
      if (whole(this.#floor.since)) this.#floor.begin(this.#inFlight.values())
      this.#lookForStall()
      return
    }
    const what = silent ? 'no byte' : `only ${this.#floor.total} bytes`
    const rest = `for ${this.#stallMs} ms with ${this.#inFlight.size} requests in flight`
    this.fail(new NbdError('STALL', `NBD: ${what} ${rest}`))
  }

  // The end.

  /** Sends NBD_CMD_DISC when the last reply is in; resolves at the end of the connection. May be called again. */
  async disconnect(timeoutMs: number): Promise<void> {
    if (this.state === 'ready') {
      const late = (): Error =>
        new NbdError(
          'DISCONNECT_TIMEOUT',
          `NBD: no end of file ${timeoutMs} ms after disconnecting`,
        )
      if (!this.#leaving) this.deadline(timeoutMs, late)
      this.#leaving = true
      this.#flush()
      this.#sayGoodbye()
    }
    await this.closed
  }

  #sayGoodbye(): void {
    if (this.#inFlight.size > 0 || this.#discSent || this.isOver()) return
    this.#discSent = true
    this.send(encodeRequests([{ type: NBD_CMD_DISC, cookie: 0, offset: 0, length: 0 }]))
  }

  fail(error: Error): void {
    this.#over('dead', error)
  }

  destroy(reason?: Error): void {
    this.#over('closed', reason)
  }

  readonly #onAbort = (): void => {
    const reason: unknown = this.#signal?.reason
    this.destroy(
      reason instanceof Error ? reason : new NbdError('CLOSED', `NBD: aborted: ${String(reason)}`),
    )
  }

  #over(state: 'dead' | 'closed', reason: Error | undefined): void {
    if (this.isOver()) return
    this.state = state
    this.#reason = reason
    this.#decoder = undefined
    this.#piece = this.#spare
    this.#at = 0
    clearTimeout(this.#deadline)
    clearTimeout(this.#stall)
    clearImmediate(this.#secondLook)
    this.#signal?.removeEventListener('abort', this.#onAbort)
    for (const stream of this.#streams.toReversed()) stream.destroy()
    const pending = [...this.#inFlight.values()]
    this.#inFlight.clear()
    this.#unsent = []
    const why = reason ?? new NbdError('CLOSED', 'NBD: the connection was closed')
    for (const request of pending) request.settle(why)
    this.#settleClosed(reason)
  }
}

function lost(cause: Error | undefined, inFlight: number): NbdError {
  const why = cause ? `: ${cause.message}` : ''
  return new NbdError(
    'LOST',
    `NBD: the server ended the connection with ${inFlight} requests in flight${why}`,
    { cause },
  )
}
