// The NBD protocol's numbers, spelled as in its specification (doc/proto.md of the nbd project). No logic.

/** Greeting, section "Newstyle negotiation". */
export const NBDMAGIC = Buffer.from('NBDMAGIC', 'latin1')
export const IHAVEOPT = Buffer.from('IHAVEOPT', 'latin1')
/** What an oldstyle server sends in place of IHAVEOPT. */
export const CLISERV_MAGIC = Buffer.from('0000420281861253', 'hex')

/** Handshake flags (16 bits, server) and client flags (32 bits). */
export const NBD_FLAG_FIXED_NEWSTYLE = 1 << 0
export const NBD_FLAG_NO_ZEROES = 1 << 1
export const NBD_FLAG_C_FIXED_NEWSTYLE = 1 << 0
export const NBD_FLAG_C_NO_ZEROES = 1 << 1

/** Transmission flags (16 bits). */
export const NBD_FLAG_HAS_FLAGS = 1 << 0
export const NBD_FLAG_READ_ONLY = 1 << 1
export const NBD_FLAG_SEND_FLUSH = 1 << 2
export const NBD_FLAG_SEND_DF = 1 << 7
export const NBD_FLAG_CAN_MULTI_CONN = 1 << 8

/** Option haggling: IHAVEOPT again starts each option, this number starts each reply. */
export const NBD_REP_MAGIC = Buffer.from('0003e889045565a9', 'hex')

export const NBD_OPT_EXPORT_NAME = 1
export const NBD_OPT_ABORT = 2
export const NBD_OPT_LIST = 3
export const NBD_OPT_STARTTLS = 5
export const NBD_OPT_INFO = 6
export const NBD_OPT_GO = 7
export const NBD_OPT_STRUCTURED_REPLY = 8
export const NBD_OPT_LIST_META_CONTEXT = 9
export const NBD_OPT_SET_META_CONTEXT = 10

export const NBD_REP_ACK = 1
export const NBD_REP_SERVER = 2
export const NBD_REP_INFO = 3
export const NBD_REP_META_CONTEXT = 4
/** Reply types from here on are errors. */
export const NBD_REP_FLAG_ERROR = 2 ** 31

export const NBD_REP_ERRORS = {
  NBD_REP_ERR_UNSUP: 2 ** 31 + 1,
  NBD_REP_ERR_POLICY: 2 ** 31 + 2,
  NBD_REP_ERR_INVALID: 2 ** 31 + 3,
  NBD_REP_ERR_PLATFORM: 2 ** 31 + 4,
  NBD_REP_ERR_TLS_REQD: 2 ** 31 + 5,
  NBD_REP_ERR_UNKNOWN: 2 ** 31 + 6,
  NBD_REP_ERR_SHUTDOWN: 2 ** 31 + 7,
  NBD_REP_ERR_BLOCK_SIZE_REQD: 2 ** 31 + 8,
  NBD_REP_ERR_TOO_BIG: 2 ** 31 + 9,
  NBD_REP_ERR_EXT_HEADER_REQD: 2 ** 31 + 10,
} as const

export const NBD_INFO_EXPORT = 0
export const NBD_INFO_BLOCK_SIZE = 3

/** Transmission. */
export const NBD_REQUEST_MAGIC = 0x25609513
export const NBD_SIMPLE_REPLY_MAGIC = 0x67446698
export const NBD_STRUCTURED_REPLY_MAGIC = 0x668e33ef

export const NBD_CMD_READ = 0
export const NBD_CMD_DISC = 2
export const NBD_CMD_BLOCK_STATUS = 7

export const NBD_REPLY_FLAG_DONE = 1 << 0

export const NBD_REPLY_TYPE_NONE = 0
export const NBD_REPLY_TYPE_OFFSET_DATA = 1
export const NBD_REPLY_TYPE_OFFSET_HOLE = 2
export const NBD_REPLY_TYPE_BLOCK_STATUS = 5
/** Chunk types from here on are errors. */
export const NBD_REPLY_TYPE_FLAG_ERROR = 1 << 15
export const NBD_REPLY_TYPE_ERROR = 2 ** 15 + 1
export const NBD_REPLY_TYPE_ERROR_OFFSET = 2 ** 15 + 2

export const NBD_ERRORS = {
  NBD_EPERM: 1,
  NBD_EIO: 5,
  NBD_ENOMEM: 12,
  NBD_EINVAL: 22,
  NBD_ENOSPC: 28,
  NBD_EOVERFLOW: 75,
  NBD_ENOTSUP: 95,
  NBD_ESHUTDOWN: 108,
} as const

/** `base:allocation` flags, section "The base: metadata namespace". */
export const NBD_STATE_HOLE = 1 << 0
export const NBD_STATE_ZERO = 1 << 1

/** Longest string (bytes), section "Values": names, queries, error texts. */
export const NBD_MAX_STRING = 4096
/** Payload (bytes) that every server takes when it states no maximum, section "Size constraints". */
export const NBD_DEFAULT_MAX_PAYLOAD = 2 ** 25
/** Largest minimum block size (bytes) that a server may state, section "Size constraints". */
export const NBD_MAX_MIN_BLOCK = 2 ** 16
/** Descriptors in one NBD_REPLY_TYPE_BLOCK_STATUS chunk, at most. */
export const NBD_MAX_EXTENTS = 2 ** 20
