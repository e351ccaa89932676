// What a server says and hears before NBD_OPT_STARTTLS is granted, section "TLS support" of the specification with
// FORCEDTLS; and how a client is refused after it. No socket and no clock: generators that yield the slot to be filled.

import { Failure } from '../../shared/failures.ts'
import {
  IHAVEOPT,
  NBD_FLAG_C_FIXED_NEWSTYLE,
  NBD_FLAG_C_NO_ZEROES,
  NBD_FLAG_FIXED_NEWSTYLE,
  NBD_FLAG_NO_ZEROES,
  NBD_OPT_ABORT,
  NBD_OPT_EXPORT_NAME,
  NBD_OPT_STARTTLS,
  NBD_REP_ACK,
  NBD_REP_ERRORS,
} from '../../shared/nbd/constants.ts'
import type { Decoder } from '../../shared/nbd/decode.ts'
import { encodeGreeting, encodeOptionReply } from '../../shared/nbd/encode.ts'

export type Send = (bytes: Buffer) => void

/** Bytes of data in one option: a name has at most 4096, and a few requests follow it. */
const MAX_OPTION = 8192
/** Options of one client that has not shown who it is: more than any asks. */
const MAX_OPTIONS = 64

const C_KNOWN = NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES

/**
 * Greets a client and answers its options until it asks for TLS, which is granted.
 * @returns the client's flags
 * @throws Failure SOURCE_REFUSED when it does not ask, and for what the specification does not allow
 */
export function* untilStartTls(send: Send): Decoder<number> {
  send(encodeGreeting(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES))
  const flags = Buffer.alloc(4)
  yield flags
  const asked = flags.readUInt32BE()
  if ((asked & NBD_FLAG_C_FIXED_NEWSTYLE) === 0 || (asked & ~C_KNOWN) !== 0)
    throw broken(`client flags 0x${asked.toString(16)}`)
  for (let options = 0; options < MAX_OPTIONS; options++) {
    const { option, length } = yield* readOption()
    if (option === NBD_OPT_STARTTLS && length === 0) {
      send(encodeOptionReply(option, NBD_REP_ACK))
      return asked
    }
    if (option === NBD_OPT_STARTTLS)
      send(encodeOptionReply(option, NBD_REP_ERRORS.NBD_REP_ERR_INVALID))
    else if (!refuse(send, option, 'NBD_REP_ERR_TLS_REQD', 'this server speaks NBD only over TLS'))
      throw new Failure('SOURCE_REFUSED', 'the client does not ask for TLS')
  }
  throw broken(`more than ${MAX_OPTIONS} options`)
}

/** Answers every option of a client with the reason why it is refused, until it goes. */
export function* untilGone(send: Send, reason: string): Decoder<void> {
  for (let options = 0; options < MAX_OPTIONS; options++) {
    const { option } = yield* readOption()
    if (!refuse(send, option, 'NBD_REP_ERR_POLICY', reason)) return
  }
}

/*
 * u64 IHAVEOPT | u32 option | u32 length of data | data
 *
 * The data is read and forgotten.
 */
function* readOption(): Decoder<{ option: number; length: number }> {
  const head = Buffer.alloc(16)
  yield head
  if (!head.subarray(0, 8).equals(IHAVEOPT))
    throw broken(`an option that starts with ${head.toString('hex', 0, 8)}`)
  const length = head.readUInt32BE(12)
  if (length > MAX_OPTION) throw broken(`an option of ${length} bytes`)
  if (length > 0) yield Buffer.alloc(length)
  return { option: head.readUInt32BE(8), length }
}

/** @returns whether the client may ask on; NBD_OPT_EXPORT_NAME has no reply that could refuse it */
function refuse(
  send: Send,
  option: number,
  reply: keyof typeof NBD_REP_ERRORS,
  reason: string,
): boolean {
  if (option === NBD_OPT_EXPORT_NAME) return false
  if (option === NBD_OPT_ABORT) send(encodeOptionReply(option, NBD_REP_ACK))
  else send(encodeOptionReply(option, NBD_REP_ERRORS[reply], Buffer.from(reason)))
  return option !== NBD_OPT_ABORT
}

function broken(what: string): Failure {
  return new Failure('SOURCE_REFUSED', `the client breaks the NBD protocol: ${what}`)
}
