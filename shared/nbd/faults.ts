// Every way the NBD client fails, by a stable machine name. docs/protocol.md prints this table.

import { Failure, type FailureCode } from '../failures.ts'

export interface FaultRow {
  /** The failure it is for exit status and hint. */
  readonly code: FailureCode
  /** Whether the connection is over; otherwise one call failed and the others go on. */
  readonly ends: boolean
  readonly meaning: string
}

export const NBD_FAULTS = {
  // Before transmission.
  CONNECT: { code: 'SOURCE_UNREACHABLE', ends: true, meaning: 'no connection to the address' },
  HANDSHAKE_TIMEOUT: { code: 'TRANSFER', ends: true, meaning: 'the handshake took too long' },
  OLDSTYLE: {
    code: 'TRANSFER',
    ends: true,
    meaning: 'the server only speaks a style without options',
  },
  NO_GO: { code: 'SOURCE_REFUSED', ends: true, meaning: 'the server does not know NBD_OPT_GO' },
  OPTION_REFUSED: {
    code: 'SOURCE_REFUSED',
    ends: true,
    meaning: 'the server refused an option; see reply',
  },
  BAD_OPTION_REPLY: {
    code: 'TRANSFER',
    ends: true,
    meaning: 'an option reply breaks the specification',
  },
  OPTION_FLOOD: {
    code: 'TRANSFER',
    ends: true,
    meaning: 'more option replies than 1000, or 1 MiB',
  },
  TLS: { code: 'TRANSFER', ends: true, meaning: 'the TLS handshake failed' },
  UNTRUSTED: {
    code: 'UNSAFE',
    ends: true,
    meaning: "the server's certificate is not believed",
  },
  BAD_EXPORT: {
    code: 'TRANSFER',
    ends: true,
    meaning: 'the export is described against the specification',
  },
  EXPORT_TOO_LARGE: { code: 'TRANSFER', ends: true, meaning: 'the export is larger than 64 TiB' },
  // Transmission: the stream can no longer be trusted.
  BAD_MAGIC: {
    code: 'TRANSFER',
    ends: true,
    meaning: 'a message starts with the wrong magic number',
  },
  UNKNOWN_COOKIE: {
    code: 'TRANSFER',
    ends: true,
    meaning: 'a reply to a request that is not in flight',
  },
  UNEXPECTED_REPLY: {
    code: 'TRANSFER',
    ends: true,
    meaning: 'a kind of reply that the request cannot have',
  },
  UNKNOWN_CHUNK: {
    code: 'TRANSFER',
    ends: true,
    meaning: 'a chunk type that is unknown and no error',
  },
  BAD_LENGTH: { code: 'TRANSFER', ends: true, meaning: 'a length that its message cannot have' },
  OVERSIZE: {
    code: 'TRANSFER',
    ends: true,
    meaning: 'a message longer than any that was asked for',
  },
  OUT_OF_RANGE: {
    code: 'TRANSFER',
    ends: true,
    meaning: 'a chunk outside the range of its request',
  },
  OVERLAP: { code: 'TRANSFER', ends: true, meaning: 'two chunks of one reply cover the same byte' },
  TOO_MANY_CHUNKS: {
    code: 'TRANSFER',
    ends: true,
    meaning: 'one reply in more scattered pieces than 65536',
  },
  SHORT_READ: { code: 'TRANSFER', ends: true, meaning: 'success was claimed with bytes missing' },
  MISSING_DONE: { code: 'TRANSFER', ends: true, meaning: 'the final chunk is not marked as final' },
  BAD_ERROR: { code: 'TRANSFER', ends: true, meaning: 'an error chunk without an error' },
  BAD_STATUS: { code: 'TRANSFER', ends: true, meaning: 'a block status against the specification' },
  STALL: {
    code: 'TRANSFER',
    ends: true,
    meaning: 'requests in flight, and no byte for stallMs, or fewer than 1 KiB/s',
  },
  LOST: { code: 'TRANSFER', ends: true, meaning: 'the server ended the connection' },
  DISCONNECT_TIMEOUT: {
    code: 'TRANSFER',
    ends: true,
    meaning: 'no end of file after NBD_CMD_DISC',
  },
  CLOSED: { code: 'TRANSFER', ends: true, meaning: 'the connection was closed on this side' },
  // One call alone.
  REQUEST_FAILED: {
    code: 'TRANSFER',
    ends: false,
    meaning: 'the server answered with an error; see errno',
  },
  INVALID_REQUEST: { code: 'TRANSFER', ends: false, meaning: 'refused here, before sending' },
  TOO_MANY_EXTENTS: {
    code: 'TRANSFER',
    ends: false,
    meaning: 'block status of more than 1048576 extents',
  },
} as const satisfies Record<string, FaultRow>

export type NbdFault = keyof typeof NBD_FAULTS

/** What a broken network or a server that died looks like; all others are a peer's answer, or its lie. */
const TRANSPORT: readonly NbdFault[] = ['CONNECT', 'HANDSHAKE_TIMEOUT', 'STALL', 'LOST']

export interface NbdErrorFacts {
  readonly cause?: unknown
  /** What to type next, when it is more precise than the table's hint. */
  readonly remedy?: string | undefined
  /** `NBD_REP_ERR_POLICY` and its like: why an option was refused. */
  readonly reply?: string | undefined
  /** `NBD_EIO` and its like: why a request failed. */
  readonly errno?: string | undefined
  /** The server's own words, made safe to print. */
  readonly serverText?: string | undefined
}

/** A Failure that also names the NBD fault, and carries what the server said. */
export class NbdError extends Failure {
  readonly fault: NbdFault
  readonly reply: string | undefined
  readonly errno: string | undefined
  readonly serverText: string | undefined

  constructor(fault: NbdFault, message: string, facts: NbdErrorFacts = {}) {
    super(NBD_FAULTS[fault].code, message, { cause: facts.cause, remedy: facts.remedy })
    this.fault = fault
    this.reply = facts.reply
    this.errno = facts.errno
    this.serverText = facts.serverText
  }
}

/** Whether the connection was lost on the way, so that another one to the same export may give what this one did not. */
export function isTransportLoss(error: unknown): boolean {
  return error instanceof NbdError && TRANSPORT.includes(error.fault)
}
