// A disk's connection that outlives its transport: what was being read when one was lost is read from the next, of the
// same session. Whether that may be connected is not decided here.

import { toFailure } from '../../shared/failures.ts'
import { isTransportLoss, NbdError, type NbdConnection } from '../../shared/nbd/client.ts'
import { backOff, type OnRetry } from './back-off.ts'

/** So long after its first loss a read is given up; the source too keeps a session so long without a connection. */
const GIVE_UP_MS = 60_000

/** What a copy does with a disk's connection; `NbdConnection` says how each behaves. */
export type DiskConnection = Pick<NbdConnection, 'size' | 'read' | 'disconnect' | 'destroy'>

export interface Lasting {
  /** The disk, for who is told of a retry. */
  readonly target: string
  /** Ends everything at once. */
  readonly signal: AbortSignal
  readonly onRetry: OnRetry
  /** Another connection to the same bytes. @throws what is no failure of transport when there will be none */
  readonly connect: (signal: AbortSignal) => Promise<NbdConnection>
  /** Milliseconds; by default 60 s. */
  readonly giveUpMs?: number
}

/**
 * Reads from `first`, and when that is lost from the connections that come after it. Each read is given up 60 s after its
 * first loss, so that a server that dies of one request does not keep a pull for ever. An answer of the server, however
 * bad, is never asked for again.
 */
export function lastingConnection(first: NbdConnection, lasting: Lasting): DiskConnection {
  const { target, connect, onRetry, giveUpMs = GIVE_UP_MS } = lasting
  const over = new AbortController()
  const signal = AbortSignal.any([lasting.signal, over.signal])
  const retries = backOff(target, signal, onRetry)
  let present = first
  let coming: Promise<void> | undefined

  async function replace(lost: NbdConnection, loss: unknown, deadline: number): Promise<void> {
    const next = await retries.again(toFailure(loss), deadline, connect)
    lost.destroy()
    present = next
    // It came too late for who has ended it meanwhile.
    if (signal.aborted) next.destroy()
    signal.throwIfAborted()
  }

  return {
    size: first.size,
    async read(offset, into) {
      let deadline: number | undefined
      for (;;) {
        const used = present
        try {
          await used.read(offset, into)
          retries.settled()
          return
        } catch (error) {
          signal.throwIfAborted()
          if (!isTransportLoss(error)) throw error
          deadline ??= performance.now() + giveUpMs
          // One reconnect serves all reads that were in flight.
          if (present === used)
            await (coming ??= replace(used, error, deadline).finally(() => (coming = undefined)))
        }
      }
    },
    async disconnect(timeoutMs) {
      await coming?.catch(() => undefined)
      await present.disconnect(timeoutMs)
    },
    destroy(reason) {
      over.abort(reason ?? new NbdError('CLOSED', 'NBD: the connection was closed'))
      present.destroy(reason)
    },
  }
}
