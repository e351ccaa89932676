// What a caller does with an open export: read, ask for block status, leave.

import { NBD_CMD_BLOCK_STATUS, NBD_CMD_READ, NBD_FLAG_READ_ONLY } from './constants.ts'
import { NbdError } from './faults.ts'
import type { ExportInfo } from './haggle.ts'
import type { NbdExtent } from './replies.ts'
import { DISCONNECT_MS, type Session } from './session.ts'
import { checkRange, planRead, type BlockSize } from './split.ts'

/** One export, in transmission. Every promise it gives settles, whatever the server does. */
export interface NbdConnection {
  /** Export size in bytes. */
  readonly size: number
  readonly readOnly: boolean
  /** Transmission flags, NBD_FLAG_*. */
  readonly flags: number
  /** In bytes; 1, 4096 and 32 MiB when the server states none. */
  readonly blockSize: BlockSize
  /** Whether structured replies were granted. */
  readonly structured: boolean
  /** Granted metadata contexts, name -> id. */
  readonly metaContexts: ReadonlyMap<string, number>

  /**
   * Reads `into.length` bytes at `offset` straight into `into`, which may be shared memory. Any offset and length
   * will do: the request is cut to the server's block sizes. After a rejection the content of `into` is undefined,
   * but nothing writes to it any more. Section "Request types", NBD_CMD_READ.
   * @throws NbdError: INVALID_REQUEST outside the export; REQUEST_FAILED with `errno` when this read alone failed;
   *   any fault that ends the connection; the signal's reason
   */
  read(offset: number, into: Uint8Array): Promise<void>

  /**
   * The status of exactly `length` bytes at `offset`, in order, without gaps; neighbours differ in flags. Asks
   * again where the server answers for less. At most 2^20 extents: ask in windows. Section "Metadata querying".
   * @param context one of `metaContexts`
   * @throws NbdError: INVALID_REQUEST, TOO_MANY_EXTENTS, and as `read`
   */
  blockStatus(offset: number, length: number, context: string): Promise<NbdExtent[]>

  /**
   * Takes no more requests, waits for those in flight, sends NBD_CMD_DISC, and resolves at the server's end of file
   * (nbd-server's postrun has ended) or after `timeoutMs` in all, by default 180 s. Never rejects: `closed` tells
   * how it went. May be called again.
   */
  disconnect(timeoutMs?: number): Promise<void>

  /** Ends it at once; what is in flight rejects with `reason`. May be called again. */
  destroy(reason?: Error): void

  /** Resolves (never rejects) with the reason when the connection is over; undefined after a clean end. */
  readonly closed: Promise<Error | undefined>
}

/** Longest block status request, in bytes: what fits 32 bits, and is a multiple of every minimum block. */
const MAX_STATUS = 2 ** 32 - 2 ** 16
const MAX_EXTENTS = 2 ** 20
const NOTHING = new Uint8Array(0)
const NO_STATUSES = new Map<number, NbdExtent[]>()

export function connection(
  session: Session,
  { size, flags, blockSize }: ExportInfo,
  metaContexts: ReadonlyMap<string, number>,
): NbdConnection {
  const { minimum } = blockSize

  function read(offset: number, into: Uint8Array): Promise<void> {
    return new Promise((resolve, reject) => {
      checkRange(offset, into.length, size, minimum)
      if (into.length === 0) {
        resolve()
        return
      }
      const parts = planRead(offset, into, blockSize)
      let left = parts.length
      let failed: Error | undefined
      for (const part of parts)
        session.submit({
          type: NBD_CMD_READ,
          cookie: 0,
          offset: part.offset,
          length: part.into.length,
          into: part.into,
          covered: [],
          statuses: NO_STATUSES,
          error: undefined,
          settle: error => {
            failed ??= error
            if (!error && part.bounce) deliver(part.into, part.bounce)
            // Not at the first failure: the other parts may still be on their way into the caller's buffer.
            if (--left > 0) return
            if (failed) reject(failed)
            else resolve()
          },
        })
    })
  }

  function requestStatus(offset: number, length: number): Promise<Map<number, NbdExtent[]>> {
    return new Promise((resolve, reject) => {
      const statuses = new Map<number, NbdExtent[]>()
      session.submit({
        type: NBD_CMD_BLOCK_STATUS,
        cookie: 0,
        offset,
        length,
        into: NOTHING,
        covered: [],
        statuses,
        error: undefined,
        settle: error => {
          if (error) reject(error)
          else resolve(statuses)
        },
      })
    })
  }

  async function blockStatus(
    offset: number,
    length: number,
    context: string,
  ): Promise<NbdExtent[]> {
    const id = metaContexts.get(context)
    if (id === undefined)
      throw new NbdError(
        'INVALID_REQUEST',
        `NBD: metadata context ${JSON.stringify(context)} was not granted`,
      )
    checkRange(offset, length, size, minimum)
    const extents: NbdExtent[] = []
    const end = offset + length
    for (let at = offset; at < end;) {
      const from = at - (at % minimum)
      const upTo = Math.ceil(end / minimum) * minimum
      const reply = (await requestStatus(from, Math.min(upTo - from, MAX_STATUS))).get(id) ?? []
      const before = at
      for (const extent of reply) at = append(extents, extent, at, end)
      if (at === before) {
        const stuck = new NbdError(
          'BAD_STATUS',
          `NBD: the block status at ${from} ends before ${before}`,
        )
        session.fail(stuck)
        throw stuck
      }
      if (extents.length > MAX_EXTENTS)
        throw new NbdError(
          'TOO_MANY_EXTENTS',
          `NBD: more than ${MAX_EXTENTS} extents from ${offset} on`,
        )
    }
    return extents
  }

  return {
    size,
    readOnly: (flags & NBD_FLAG_READ_ONLY) !== 0,
    flags,
    blockSize,
    structured: session.structured,
    metaContexts,
    read,
    blockStatus,
    disconnect: (timeoutMs = DISCONNECT_MS) => session.disconnect(timeoutMs),
    destroy: reason => session.destroy(reason),
    closed: session.closed,
  }
}

function deliver(block: Uint8Array, { skip, target }: { skip: number; target: Uint8Array }): void {
  target.set(block.subarray(skip, skip + target.length))
}

/** Adds what of `extent` lies in `at` to `end`; returns where the next one starts. */
function append(extents: NbdExtent[], extent: NbdExtent, at: number, end: number): number {
  const stop = Math.min(extent.offset + extent.length, end)
  if (stop <= at) return at
  const last = extents.at(-1)
  if (last?.flags === extent.flags) last.length += stop - at
  else extents.push({ offset: at, length: stop - at, flags: extent.flags })
  return stop
}
