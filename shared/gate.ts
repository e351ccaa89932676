// The gate's words: every method with the shape of what is sent and answered. Both sides validate by this table.

import { z } from 'zod'
import { isName, isRecoveryPointId, NAME_RULE } from './names.ts'

/** What a source may say in `hello` that it can do beyond the methods of every version. */
export const FEATURES = {
  digests: 'digests',
  allocation: 'allocation',
  changes: 'changes',
} as const
/** The most chunks that one `digests` asks for. */
export const MAX_DIGESTS = 1024
/** The most extents in one answer; `next` says where to ask on. */
export const MAX_EXTENTS = 16_384
/** More disks than libvirt's buses give a domain in practice; few enough that a list of them is no burden. */
const MAX_DISKS = 256
/** Networks and pools that a domain's devices name. */
const MAX_NAMED = 256
/** Far more recovery points than a source records. */
const MAX_TRACKED = 100
/** The source keeps 20 refusals of a lease. */
const MAX_REFUSALS = 100

const name = z.string().refine(isName, NAME_RULE)
const token = z.string().regex(/^[0-9a-f]{32}$/, 'a token is 32 hex digits')
const count = z.number().int().nonnegative().max(Number.MAX_SAFE_INTEGER)
const recoveryPointId = z.string().refine(isRecoveryPointId, 'not a recovery point id')
const role = z.enum(['standby', 'failed-over', 'failing-back'])

export const diskFormat = z.enum(['raw', 'qcow2'])
export type DiskFormat = z.infer<typeof diskFormat>
export const consistency = z.enum(['quiesced', 'crash', 'off'])

/** The instant a session froze the domain (source's clock, ISO 8601 UTC). */
export const recoveryPoint = z.object({
  id: recoveryPointId,
  instant: z.iso.datetime(),
  consistency,
})
export type RecoveryPoint = z.infer<typeof recoveryPoint>

/** One exported disk of a session; size is the exported bytes (for qcow2: of the container). */
export const sessionDisk = z.object({ target: name, format: diskFormat, size: count })
export type SessionDisk = z.infer<typeof sessionDisk>

const helloParams = z.object({
  protocol: z.object({ min: count, max: count }),
  version: z.string().max(100),
  clockMs: count,
  /** The clone this connection is about, when it is about one. */
  clone: z.object({ name, role, epoch: count }).optional(),
})
const helloResult = z.object({
  protocol: count,
  version: z.string().max(100),
  clockMs: count,
  hostId: z.uuid(),
  role: z.enum(['source', 'standby', 'failed-over', 'failing-back']),
  epoch: count,
  /** Absent from sources before digests: they have none. Words that are not known are passed over. */
  features: z.array(z.string().max(50)).max(100).optional(),
})

const describeResult = z.object({
  domain: name,
  uuid: z.uuid(),
  state: z.string().max(100),
  disks: z
    .array(
      z.object({
        target: name,
        exported: z.boolean(),
        /** Why a disk is not exported. */
        reason: z.string().max(1000).optional(),
        format: diskFormat.optional(),
        size: count.optional(),
        /** Bytes that the image takes on the source, at most its size: what a copy without holes will take. */
        allocated: count.optional(),
        /** Recovery points since which changes are recorded, with the bytes that changed so far. */
        tracked: z
          .array(z.object({ recoveryPoint: recoveryPointId, bytes: count }))
          .max(MAX_TRACKED)
          .optional(),
      }),
    )
    .max(MAX_DISKS),
})

const openResult = z.object({
  token,
  session: z.string().max(100),
  /** Whether the lease shares a session that was frozen already. */
  joined: z.boolean(),
})

const infoResult = z.object({
  recoveryPoint,
  uuid: z.uuid(),
  disks: z.array(sessionDisk).max(MAX_DISKS),
  inactiveXml: z.string(),
  liveXml: z.string(),
  /** UEFI variables, base64. */
  nvram: z.string().nullable(),
  networks: z.array(z.object({ name: z.string().max(200), xml: z.string() })).max(MAX_NAMED),
  pools: z.array(z.object({ name: z.string().max(200), xml: z.string() })).max(MAX_NAMED),
  host: z.object({
    libvirt: z.string().max(100),
    qemu: z.string().max(100),
    arch: z.string().max(100),
    machine: z.string().max(200),
    cpu: z.string().max(200),
  }),
  freezeMs: count,
  snapshotMs: count,
})
export type SessionInfo = z.infer<typeof infoResult>

const refusal = z.object({
  at: z.iso.datetime(),
  export: z.string().max(300),
  code: z.string().max(50),
  reason: z.string().max(2000),
  remedy: z.string().max(2000).optional(),
  client: z.string().max(100).optional(),
})

/**
 * `merging`: ask again. `kept`: others still use the session, the merge comes after them. `merged` and `failed` are
 * final.
 */
const outcomeResult = z.object({
  state: z.enum(['reserved', 'frozen', 'kept', 'merging', 'merged', 'failed']),
  /** Why the session ended, when it was not the client's release. */
  reason: z.string().max(2000).optional(),
  code: z.string().max(50).optional(),
  remedy: z.string().max(4000).optional(),
  disks: z.array(z.object({ target: name, mergeMs: count, overlayBytes: count })).max(MAX_DISKS),
  refusals: z.array(refusal).max(MAX_REFUSALS),
})
export type Outcome = z.infer<typeof outcomeResult>

const digestsParams = z.object({
  token,
  target: name,
  /** The first chunk. */
  chunk: count,
  count: count.min(1).max(MAX_DIGESTS),
  /** Read also what seems to be a hole; else that is taken for zeros. */
  whole: z.boolean().optional(),
})
const digestsResult = z.object({
  digests: z
    .array(z.string().regex(/^[0-9a-f]{64}$/, 'a digest is 64 hex digits'))
    .max(MAX_DIGESTS),
})

const extentsResult = z.object({
  /** Bytes of the disk; absent when the source does not know. */
  size: count.optional(),
  /** Why it does not know. */
  reason: z.string().max(2000).optional(),
  /** Offsets and lengths in bytes, in order, without overlap. */
  extents: z.array(z.tuple([count, count.min(1)])).max(MAX_EXTENTS),
  /** Where to ask on, or null when this was all. */
  next: count.nullable(),
})

const tokenOnly = z.object({ token })
const nothing = z.object({})

/** Method name -> shapes of params and result. */
export const GATE = {
  hello: { params: helloParams, result: helloResult },
  describe: { params: z.object({ domain: name }), result: describeResult },
  'session.open': {
    /** `tracking`: the client may ask for `changes`, and changes are recorded from this recovery point on. */
    params: z.object({
      domain: name,
      want: z.object({ tracking: z.boolean().optional() }),
    }),
    result: openResult,
  },
  'session.renew': { params: tokenOnly, result: nothing },
  'session.info': { params: tokenOnly, result: infoResult },
  /** Fails unless the token's session is still frozen: an answer proves that what was read is one recovery point. */
  'session.release': { params: tokenOnly, result: z.object({ recoveryPoint: recoveryPointId }) },
  /**
   * SHA-256 of each of `count` chunks (1 MiB, the disk's last one at its real length) of the exported bytes of a frozen
   * disk. Only where `hello` named the feature. At most 4 at once for each disk of the session.
   */
  digests: { params: digestsParams, result: digestsResult },
  /** Where a frozen disk has data, from byte `at` on; all else reads as zeros. Only where `hello` named the feature. */
  allocation: { params: z.object({ token, target: name, at: count }), result: extentsResult },
  /** What of a frozen disk may have changed since a recovery point. Only where `hello` named the feature. */
  changes: {
    params: z.object({ token, target: name, since: recoveryPointId, at: count }),
    result: extentsResult,
  },
  acknowledge: {
    params: z.object({ domain: name, recoveryPoint: recoveryPointId }),
    result: nothing,
  },
  /** Answers when the state is final or after waitMs (at most 30 s). */
  outcome: { params: z.object({ token, waitMs: count.max(30_000) }), result: outcomeResult },
} as const

export type GateMethod = keyof typeof GATE
export type GateParams<M extends GateMethod> = z.infer<(typeof GATE)[M]['params']>
export type GateResult<M extends GateMethod> = z.infer<(typeof GATE)[M]['result']>

/** Sent by the source when a lease's session ended under it: {token, reason}. */
export const SESSION_ENDED = 'session.ended'
export const sessionEnded = z.object({
  token,
  reason: z.string().max(2000),
  code: z.string().max(50),
  remedy: z.string().max(4000).optional(),
})
