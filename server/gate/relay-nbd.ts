// An NBD stream carried into serve for a named client: admitted first, and as fast as its client may be served.

import { once } from 'node:events'
import type { Socket } from 'node:net'
import type { Readable, Writable } from 'node:stream'
import { Failure } from '../../shared/failures.ts'
import { connectToServe, openServeLink } from '../serve/client.ts'
import { MAX_TAKE } from '../serve/words.ts'

export interface Relay extends AsyncDisposable {
  /** Connected to an nbd-server of its own, which speaks first; nothing of it was read, nor flows yet. Destroyed when serve ends the relay. */
  readonly socket: Socket
  /** Resolves when so many bytes more may go to the client; at once when it is not limited. */
  take(bytes: number): Promise<void>
}

/**
 * Asks serve for one stream.
 * @param who the client's name, which the caller has proved; where it is, as an address; the one export that it may see
 * (`DOMAIN/TARGET@TOKEN` or `DOMAIN/TARGET`), all of its own without one
 * @throws Failure SOURCE_REFUSED with the reason; SOURCE_UNREACHABLE when serve does not run
 */
export async function openRelay(
  serveSocket: string,
  { client, peer, exportName }: { client: string; peer: string; exportName?: string | undefined },
): Promise<Relay> {
  const link = await openServeLink(serveSocket, { role: 'relay', client, peer })
  try {
    const asked = exportName === undefined ? {} : { export: exportName }
    const { ticket, limited } = await link.ask('relay.admit', asked)
    const socket = await connectToServe(serveSocket, { role: 'nbd', ticket })
    socket.on('error', () => socket.destroy())
    const end = (): void => void socket.destroy()
    if (link.lost.aborted) end()
    link.lost.addEventListener('abort', end, { once: true })
    return {
      socket,
      async take(bytes) {
        for (let left = bytes; limited && left > 0; left -= MAX_TAKE)
          await link.ask('relay.take', { ticket, bytes: Math.min(left, MAX_TAKE) })
      },
      [Symbol.asyncDispose]() {
        socket.destroy()
        link[Symbol.dispose]()
        return Promise.resolve()
      },
    }
  } catch (error) {
    link[Symbol.dispose]()
    throw error
  }
}

/**
 * Carries the stream until either side ends it, or the signal aborts. The relay is still the caller's to dispose.
 * @throws Failure when serve ended the relay while the client waited for its bandwidth
 */
export async function relayNbd(
  relay: Relay,
  input: Readable,
  output: Writable,
  signal?: AbortSignal,
): Promise<void> {
  const { socket } = relay
  const clientGone = new Promise<void>(resolve => {
    const gone = (): void => resolve()
    input.once('end', gone)
    for (const stream of [input, output]) stream.once('close', gone).on('error', gone)
    if (signal?.aborted === true) gone()
    signal?.addEventListener('abort', gone, { once: true })
  })
  try {
    await Promise.race([clientGone, carry(relay, input, output)])
  } finally {
    input.unpipe(socket).pause()
    // What the client said last, a disconnect, still goes out.
    socket.destroySoon()
  }
}

async function carry(relay: Relay, input: Readable, output: Writable): Promise<void> {
  const { socket } = relay
  // Servers speak first: until this one has, what the client sends could be read by serve instead.
  let listens = false
  const listen = (): void => {
    if (!listens) input.pipe(socket, { end: false })
    listens = true
  }
  if (socket.bytesRead > 0) listen()
  try {
    for await (const chunk of socket as AsyncIterable<Buffer>) {
      listen()
      await relay.take(chunk.length)
      if (!output.write(chunk)) await once(output, 'drain')
    }
  } catch (error) {
    // However the socket ended, the stream is over; only what serve says is worth telling.
    if (error instanceof Failure) throw error
  }
  if (output.writableLength > 0) await once(output, 'drain')
}
