// The gate's words: every method with the shape of what is sent and answered. Both sides validate by this table.

import { z } from 'zod'
import { isName, isRecoveryPointId, NAME_RULE } from './names.ts'

export const PROTOCOL = 1

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
})

const describeResult = z.object({
  domain: name,
  uuid: z.uuid(),
  state: z.string().max(100),
  disks: z.array(
    z.object({
      target: name,
      exported: z.boolean(),
      /** Why a disk is not exported. */
      reason: z.string().max(1000).optional(),
      format: diskFormat.optional(),
      size: count.optional(),
    }),
  ),
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
  disks: z.array(sessionDisk),
  inactiveXml: z.string(),
  liveXml: z.string(),
  /** UEFI variables, base64. */
  nvram: z.string().nullable(),
  networks: z.array(z.object({ name: z.string().max(200), xml: z.string() })),
  pools: z.array(z.object({ name: z.string().max(200), xml: z.string() })),
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
  disks: z.array(z.object({ target: name, mergeMs: count, overlayBytes: count })),
  refusals: z.array(refusal),
})
export type Outcome = z.infer<typeof outcomeResult>

const tokenOnly = z.object({ token })
const nothing = z.object({})

/** Method name -> shapes of params and result. */
export const GATE = {
  hello: { params: helloParams, result: helloResult },
  describe: { params: z.object({ domain: name }), result: describeResult },
  'session.open': {
    params: z.object({ domain: name, want: z.object({}) }),
    result: openResult,
  },
  'session.renew': { params: tokenOnly, result: nothing },
  'session.info': { params: tokenOnly, result: infoResult },
  /** Fails unless the token's session is still frozen: an answer proves that what was read is one recovery point. */
  'session.release': { params: tokenOnly, result: z.object({ recoveryPoint: recoveryPointId }) },
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
