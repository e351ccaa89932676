// Runs a decoder over a stream: from where the stream is, to where the decoder has all it wants, and not a byte further.

import type { Duplex } from 'node:stream'
import { Failure } from '../../shared/failures.ts'
import type { Decoder } from '../../shared/nbd/decode.ts'
import { feedByCopy, type Receiver } from '../../shared/nbd/transport.ts'

/**
 * The stream is left paused.
 * @param who said in errors: "the client"
 * @throws Failure SOURCE_REFUSED when the stream ends before, or when bytes follow that the decoder did not ask for
 * @throws what the decoder throws
 */
export function drive<T>(stream: Duplex, decoder: Decoder<T>, who: string): Promise<T> {
  return new Promise((resolve, reject) => {
    let slot: Uint8Array = Buffer.alloc(1)
    let at = 0
    let over = false
    const settle = (outcome: () => void): boolean => {
      if (!over) {
        over = true
        stop()
        outcome()
      }
      return false
    }
    const fail = (error: unknown): boolean =>
      settle(() => reject(error instanceof Error ? error : new Error(String(error))))
    let done: { readonly value: T } | undefined
    const advance = (): boolean => {
      try {
        const step = decoder.next()
        at = 0
        if (!step.done) slot = step.value
        else {
          done = { value: step.value }
          slot = Buffer.alloc(1)
          // What came in the same piece is seen first: it was said before it could be wanted.
          queueMicrotask(() => (stream.readableLength > 0 ? fail(early()) : finish()))
        }
        return true
      } catch (error) {
        return fail(error)
      }
    }
    const finish = (): boolean => settle(() => done && resolve(done.value))
    const early = (): Failure =>
      new Failure('SOURCE_REFUSED', `${who} breaks the NBD protocol: bytes that nobody asked for`)
    const receiver: Receiver = {
      slot: () => slot.subarray(at),
      filled(length) {
        if (done) return fail(early())
        at += length
        return at < slot.length || advance()
      },
      ended: error =>
        void fail(new Failure('SOURCE_REFUSED', `${who} ended the connection`, { cause: error })),
    }
    const stop = feedByCopy(stream, receiver)
    advance()
    stream.resume()
  })
}
