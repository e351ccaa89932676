// What hooks, relays and an operator say to serve on its socket; the gate's words are in shared/gate.ts. The first line of a
// connection names its role; then JSON-RPC follows, or for `nbd` the NBD connection itself.

import { z } from 'zod'
import { GATE } from '../../shared/gate.ts'
import { isName, NAME_RULE } from '../../shared/names.ts'

const name = z.string().refine(isName, NAME_RULE)
const ticket = z.string().regex(/^[0-9a-f]{32}$/, 'a ticket is 32 hex digits')
/** Where a client is, as its relay says: an address, or a name. */
const peer = z.string().regex(/^[A-Za-z0-9_.:%+@-]{1,100}$/, 'a peer is an address')

export const roleLine = z.discriminatedUnion('role', [
  z.strictObject({ role: z.literal('gate'), client: name, peer: peer.optional() }),
  z.strictObject({ role: z.literal('relay'), client: name, peer }),
  z.strictObject({ role: z.literal('nbd'), ticket }),
  z.strictObject({ role: z.literal('hook') }),
  z.strictObject({ role: z.literal('operator') }),
])
export type Role = z.infer<typeof roleLine>
/** Roles whose line is followed by JSON-RPC. */
export type RpcRole = Exclude<Role, { role: 'nbd' }>

const hookParams = z.object({
  /** Connection id that serve gave out, or `classic`. */
  connection: name,
  domain: name,
  target: name,
  token: name.optional(),
  /** The nbd-server process whose hook this is. */
  pid: z.number().int().positive(),
})
export type HookParams = z.infer<typeof hookParams>

const diskOutcome = z.object({ target: z.string(), mergeMs: z.number(), overlayBytes: z.number() })

/** How the last session of a domain ended. */
const lastSession = z.object({
  recoveryPoint: z.string(),
  /** When it was over, merged or not. */
  at: z.string(),
  state: z.enum(['merged', 'failed']),
  /** Why it was ended, when its holders did not just let it go; known until serve is started again. */
  reason: z.string().optional(),
  code: z.string().optional(),
  remedy: z.string().optional(),
  /** Why the merge failed. */
  failure: z.string().optional(),
  consistency: z.string().optional(),
  freezeMs: z.number().optional(),
  snapshotMs: z.number().optional(),
  disks: z.array(diskOutcome),
})
export type LastSession = z.infer<typeof lastSession>

export const domainStatus = z.object({
  domain: z.string(),
  /** `idle`, `frozen`, `merging`, `unsettled` (recover is due) or `needs operator`. */
  state: z.enum(['idle', 'frozen', 'merging', 'unsettled', 'needs operator']),
  recoveryPoint: z.string().optional(),
  consistency: z.string().optional(),
  ageMs: z.number().optional(),
  holders: z.array(
    z.object({ kind: z.enum(['gate', 'operator', 'connection']), client: z.string() }),
  ),
  connections: z.number(),
  /** Connections that read; `client` is missing for a stock client. */
  members: z.array(
    z.object({
      client: z.string().optional(),
      target: z.string(),
      /** An address, `unix` or `classic`. */
      peer: z.string(),
      bytes: z.number(),
    }),
  ),
  /** Bytes of the bases that were hashed for clients that compare. */
  hashed: z.number().optional(),
  freezeMs: z.number().optional(),
  snapshotMs: z.number().optional(),
  disks: z.array(
    z.object({
      target: z.string(),
      base: z.string(),
      overlay: z.string(),
      overlayBytes: z.number(),
    }),
  ),
  last: lastSession.optional(),
  /** The last connections that were refused, oldest first: NBD itself can only say "denied". */
  refusals: z.array(
    z.object({
      at: z.string(),
      export: z.string(),
      code: z.string(),
      reason: z.string(),
      remedy: z.string().optional(),
      /** Whose, when that is known. */
      client: z.string().optional(),
    }),
  ),
  /** Why it needs an operator or is not settled, or why its session is being ended. */
  reason: z.string().optional(),
  /** What an operator can type. */
  remedy: z.string().optional(),
})
export type DomainStatus = z.infer<typeof domainStatus>

const onlyDomain = z.object({ domain: name })
const empty = z.object({})

/** A domain that is about to start, as libvirt names it, and paths of its images. */
const startParams = z.object({
  domain: z.string().max(1000),
  images: z.array(z.string().max(4096)).max(1000),
})

export const HOOK = {
  'hook.begin': { params: hookParams, result: empty },
  'hook.end': { params: hookParams, result: empty },
  /** Answered when nobody reads the images any more. */
  'hook.start': { params: startParams, result: z.object({ ended: z.number() }) },
} as const

/** The most that one `relay.take` asks for, bytes. */
export const MAX_TAKE = 16 * 1024 * 1024

/** The most that `relay.refused` says, characters. */
export const MAX_REFUSED = 1000

/** What a relay says of the one NBD stream that it carries. */
export const RELAY = {
  /** A ticket for one connection of role `nbd`: good once, within 10 s, while this connection lives. */
  'relay.admit': {
    params: z.object({ export: z.string().max(400).optional() }),
    result: z.object({ ticket, limited: z.boolean() }),
  },
  /** Answered when the client's bandwidth allows so many bytes more. */
  'relay.take': {
    params: z.object({ ticket, bytes: z.number().int().min(1).max(MAX_TAKE) }),
    result: empty,
  },
  /** For the log: what the client asked of the relay itself, and did not get. */
  'relay.refused': { params: z.object({ what: z.string().max(MAX_REFUSED) }), result: empty },
} as const

/** What was taken away from a client whose connections are ended. */
const WHY_ENDED = ['revoked', 'rights', 'certificates'] as const

export const OPERATOR = {
  'operator.status': { params: empty, result: z.object({ domains: z.array(domainStatus) }) },
  'operator.hold': {
    params: onlyDomain,
    result: z.object({
      recoveryPoint: z.string(),
      disks: z.array(z.object({ target: z.string(), base: z.string() })),
    }),
  },
  'operator.letGo': {
    params: onlyDomain,
    result: z.object({
      state: z.enum(['not held', 'kept', 'merged']),
      disks: z.array(diskOutcome),
    }),
  },
  /** Something was taken away from a client: its leases, gates and NBD connections end at once. */
  'operator.endClient': {
    params: z.object({ client: name, why: z.enum(WHY_ENDED).default('revoked') }),
    result: z.object({ leases: z.number(), connections: z.number() }),
  },
  'operator.recover': {
    params: z.object({ domain: name, mergeOverlays: z.array(name).max(100).optional() }),
    result: z.object({ result: z.enum(['nothing to do', 'recovered', 'in session']) }),
  },
} as const

export const WORDS = { ...GATE, ...HOOK, ...RELAY, ...OPERATOR }
export type Method = keyof typeof WORDS
export type Params<M extends Method> = z.infer<(typeof WORDS)[M]['params']>
export type Result<M extends Method> = z.infer<(typeof WORDS)[M]['result']>
