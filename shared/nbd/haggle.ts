// Option haggling, step by step as the specification's section "Option haggling" allows it. Decoders that also
// send: what is asked next depends on what was granted. No I/O beyond `send`, no clock.

import {
  NBD_FLAG_C_FIXED_NEWSTYLE,
  NBD_FLAG_C_NO_ZEROES,
  NBD_FLAG_NO_ZEROES,
  NBD_INFO_BLOCK_SIZE,
  NBD_INFO_EXPORT,
  NBD_OPT_ABORT,
  NBD_OPT_GO,
  NBD_OPT_INFO,
  NBD_OPT_LIST,
  NBD_OPT_LIST_META_CONTEXT,
  NBD_OPT_SET_META_CONTEXT,
  NBD_OPT_STARTTLS,
  NBD_OPT_STRUCTURED_REPLY,
  NBD_REP_ACK,
  NBD_REP_ERRORS,
  NBD_REP_FLAG_ERROR,
  NBD_REP_INFO,
  NBD_REP_META_CONTEXT,
  NBD_REP_SERVER,
  NBD_DEFAULT_MAX_PAYLOAD,
} from './constants.ts'
import {
  decodeBlockSize,
  decodeExportInfo,
  decodeGreeting,
  decodeMetaContext,
  decodeOptionReply,
  decodeServerName,
  printable,
  type Decoder,
  type OptionBudget,
} from './decode.ts'
import {
  encodeClientFlags,
  encodeInfoRequest,
  encodeMetaContextQuery,
  encodeOption,
} from './encode.ts'
import { NbdError } from './faults.ts'
import type { BlockSize } from './split.ts'

/** The other end, as haggling sees it. */
export interface Peer {
  send(bytes: Uint8Array): void
  readonly budget: OptionBudget
}

export interface ExportInfo {
  /** Bytes. */
  readonly size: number
  /** Transmission flags. */
  readonly flags: number
  readonly blockSize: BlockSize
}

interface Refusal {
  /** `NBD_REP_ERR_POLICY` and its like. */
  readonly reply: string
  readonly serverText: string | undefined
}

/** What a server that states no block size is presumed to take, section "Size constraints". */
const PRESUMED: BlockSize = { minimum: 1, preferred: 4096, maximum: NBD_DEFAULT_MAX_PAYLOAD }

/** Greeting and client flags. */
export function* greet(peer: Peer): Decoder<void> {
  const flags = yield* decodeGreeting()
  const noZeroes = (flags & NBD_FLAG_NO_ZEROES) === 0 ? 0 : NBD_FLAG_C_NO_ZEROES
  peer.send(encodeClientFlags(NBD_FLAG_C_FIXED_NEWSTYLE | noZeroes))
}

/** NBD_OPT_STARTTLS. When it returns, the next byte belongs to TLS. @throws OPTION_REFUSED */
export function* startTls(peer: Peer): Decoder<void> {
  const refusal = yield* ask(peer, NBD_OPT_STARTTLS)
  if (refusal) throw refused('TLS', 'NBD_OPT_STARTTLS', refusal)
}

/** NBD_OPT_STRUCTURED_REPLY. Returns whether it was granted; any refusal is a no. */
export function* structuredReply(peer: Peer): Decoder<boolean> {
  return (yield* ask(peer, NBD_OPT_STRUCTURED_REPLY)) === undefined
}

/**
 * NBD_OPT_SET_META_CONTEXT; structured replies must have been granted.
 * @returns granted context name -> its id; empty when the server knows none of them, or no contexts at all
 */
export function* setMetaContexts(
  peer: Peer,
  exportName: string,
  contexts: readonly string[],
): Decoder<Map<string, number>> {
  const granted = new Map<string, number>()
  const ids = new Set<number>()
  const query = encodeMetaContextQuery(exportName, contexts)
  const refusal = yield* ask(peer, NBD_OPT_SET_META_CONTEXT, query, NBD_REP_META_CONTEXT, data => {
    const { id, name } = decodeMetaContext(data)
    if (granted.has(name) || ids.has(id))
      throw new NbdError('BAD_OPTION_REPLY', `NBD: metadata context ${JSON.stringify(name)} twice`)
    granted.set(name, id)
    ids.add(id)
  })
  return refusal ? new Map<string, number>() : granted
}

/** NBD_OPT_LIST_META_CONTEXT, every context there is. Empty when the server refuses. */
export function* listMetaContexts(peer: Peer, exportName: string): Decoder<string[]> {
  const names: string[] = []
  const query = encodeMetaContextQuery(exportName, [])
  const refusal = yield* ask(peer, NBD_OPT_LIST_META_CONTEXT, query, NBD_REP_META_CONTEXT, data =>
    names.push(decodeMetaContext(data).name),
  )
  return refusal ? [] : names
}

/** NBD_OPT_LIST. @throws OPTION_REFUSED, for servers that do not tell */
export function* list(peer: Peer): Decoder<string[]> {
  const names: string[] = []
  const refusal = yield* ask(peer, NBD_OPT_LIST, undefined, NBD_REP_SERVER, data =>
    names.push(decodeServerName(data)),
  )
  if (refusal) throw refused('the list of exports', 'NBD_OPT_LIST', refusal)
  return names
}

/**
 * NBD_OPT_INFO, or NBD_OPT_GO after which transmission begins at once.
 * @throws NO_GO when the server is too old; OPTION_REFUSED with `reply` telling policy from unknown name
 */
export function* info(
  peer: Peer,
  option: typeof NBD_OPT_INFO | typeof NBD_OPT_GO,
  exportName: string,
): Decoder<ExportInfo> {
  let described: { size: number; flags: number } | undefined
  let blockSize = PRESUMED
  const name = option === NBD_OPT_GO ? 'NBD_OPT_GO' : 'NBD_OPT_INFO'
  const refusal = yield* ask(peer, option, encodeInfoRequest(exportName), NBD_REP_INFO, data => {
    if (data.length < 2)
      throw new NbdError('BAD_EXPORT', `NBD: information of ${data.length} bytes`)
    const type = data.readUInt16BE(0)
    if (type === NBD_INFO_EXPORT) described = decodeExportInfo(data.subarray(2))
    if (type === NBD_INFO_BLOCK_SIZE) blockSize = decodeBlockSize(data.subarray(2))
  })
  if (refusal?.reply === 'NBD_REP_ERR_UNSUP')
    throw new NbdError(
      'NO_GO',
      `NBD: the server does not know ${name}; nbd-server has it since 3.16`,
      refusal,
    )
  if (refusal) throw refused(`export ${JSON.stringify(exportName)}`, name, refusal)
  if (!described)
    throw new NbdError('BAD_EXPORT', `NBD: ${name} was granted without the export's size`)
  return { ...described, blockSize }
}

/** NBD_OPT_ABORT, the polite end. Its reply is not waited for, as the specification allows. */
export function abort(peer: Peer): void {
  peer.send(encodeOption(NBD_OPT_ABORT))
}

/**
 * One option and its replies.
 * @param replyType the kind of reply that may come before the final one, each handed to `each`
 * @returns why it was refused, or undefined when it was granted
 */
function* ask(
  peer: Peer,
  option: number,
  data?: Buffer,
  replyType?: number,
  each?: (data: Buffer) => void,
): Decoder<Refusal | undefined> {
  peer.send(encodeOption(option, data))
  for (;;) {
    const reply = yield* decodeOptionReply(option, peer.budget)
    if (reply.type >= NBD_REP_FLAG_ERROR) return asRefusal(reply.type, reply.data)
    if (reply.type === NBD_REP_ACK) {
      if (reply.data.length === 0) return undefined
      throw new NbdError('BAD_OPTION_REPLY', `NBD: NBD_REP_ACK of ${reply.data.length} bytes`)
    }
    if (reply.type !== replyType || !each)
      throw new NbdError('BAD_OPTION_REPLY', `NBD: reply type ${reply.type} to option ${option}`)
    each(reply.data)
  }
}

function asRefusal(type: number, data: Buffer): Refusal {
  const known = Object.entries(NBD_REP_ERRORS).find(([, value]) => value === type)
  return {
    reply: known ? known[0] : `NBD_REP_ERR ${type - NBD_REP_FLAG_ERROR}`,
    serverText: printable(data) || undefined,
  }
}

function refused(what: string, option: string, refusal: Refusal): NbdError {
  const said = refusal.serverText === undefined ? '' : `: ${refusal.serverText}`
  return new NbdError(
    'OPTION_REFUSED',
    `NBD: ${what} refused (${option}, ${refusal.reply})${said}`,
    refusal,
  )
}
