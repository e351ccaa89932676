// source.yaml: what it may say, what it means when it is silent, and the effective settings of one domain.

import path from 'node:path'
import { z } from 'zod'
import { layered, readConfig, type Effective } from '../../shared/config.ts'
import { Failure } from '../../shared/failures.ts'
import { isName, NAME_RULE } from '../../shared/names.ts'
import {
  duration,
  formatDuration,
  formatSize,
  rateOrOff,
  share,
  size,
  type Share,
} from '../../shared/quantities.ts'
import type { HashingPolicy } from '../digest/hasher.ts'
import type { MergePolicy } from '../session/ladder.ts'

const name = z.string().refine(isName, NAME_RULE)
const absolutePath = z
  .string()
  .regex(/^\/[A-Za-z0-9_.,+:@/-]*$/, 'a path here is absolute, of A-Z a-z 0-9 _ . , + : @ / -')
  .refine(
    text => path.posix.resolve(text) === text,
    'a path here has no //, no .. and no / at its end',
  )

/** Below it a client with many disks would not wait for its answers: at most 15 minutes for half a GiB of each. */
const LEAST_HASHING = 8 * 1024 ** 2

const LOOPBACK = /^(127\.\d+\.\d+\.\d+|::1|localhost)$/

const tcp = z
  .strictObject({
    host: z.string().min(1).describe('Address to listen on'),
    port: z.number().int().min(1).max(65535).default(10809),
    insecure: z
      .literal(true)
      .optional()
      .describe('Required off loopback: NBD over plain TCP is neither encrypted nor authenticated'),
  })
  .refine(({ host, insecure }) => insecure === true || LOOPBACK.test(host), {
    message:
      'NBD over plain TCP is neither encrypted nor authenticated: say insecure: true to listen off loopback',
  })

const tls = z
  .strictObject({
    host: z.string().min(1).describe('Address to listen on'),
    port: z.number().int().min(1).max(65535).default(10809),
    ca: absolutePath
      .optional()
      .describe('Authority of the clients; tls/ca-cert.pem beside this file without it'),
    cert: absolutePath.optional().describe("The server's certificate; tls/server-cert.pem"),
    key: absolutePath.optional().describe("The server's key; tls/server-key.pem"),
    crl: absolutePath
      .optional()
      .describe('Revoked certificates; tls/ca-crl.pem, or none when you bring your own authority'),
  })
  .refine(({ ca, cert, key, crl }) => {
    const own = [ca, cert, key].filter(file => file !== undefined).length
    return own === 3 || (own === 0 && crl === undefined)
  }, 'your own certificates are ca, cert and key together, and crl if there is one; or none of them')

const policy = {
  quiesce: z
    .enum(['required', 'auto', 'off'])
    .optional()
    .describe('Freeze file systems through the guest agent: required | auto (if it answers) | off'),
  overlayDir: absolutePath.optional().describe('Where overlays live while bases are frozen'),
  session: z
    .strictObject({
      maxAge: duration.optional().describe('A session older than this is ended and merged'),
      stall: duration.optional().describe('How long a session may stay below the floor'),
      floor: size
        .optional()
        .describe('A session that moves fewer bytes per second than this is ended; 0: never'),
    })
    .optional(),
  overlay: z
    .strictObject({
      max: share
        .optional()
        .describe('A session is ended when an overlay outgrows this share of its base, or size'),
      reserve: share
        .optional()
        .describe(
          "What sessions leave free of the overlays' file system: a share of it, or a size",
        ),
    })
    .optional(),
  merge: z
    .strictObject({
      bandwidth: z
        .number()
        .int()
        .min(0)
        .optional()
        .describe('How fast overlays are merged, in MiB/s; 0 for no limit'),
      alarm: duration
        .optional()
        .describe('A merge that takes longer is reported, and gets all bandwidth'),
      pause: z
        .union([z.literal(0), duration.refine(value => value <= 60_000, 'pause is at most 60s')])
        .optional()
        .describe(
          'How long the guest may be paused at a time so that a merge catches up; 0: never',
        ),
    })
    .optional(),
  hashing: z
    .strictObject({
      processors: z
        .union([
          z.literal('half', { error: 'half (of them, at most 4), or a number from 1 to 64' }),
          z.number().int().min(1).max(64),
        ])
        .optional()
        .describe('How many processors hash a frozen base at once, at low priority'),
      rate: rateOrOff(LEAST_HASHING)
        .optional()
        .describe('How fast it is read for that, e.g. 200MiB/s; or off'),
    })
    .optional(),
  tracking: z
    .boolean()
    .optional()
    .describe('Record in QEMU what changes between pulls, so that only that is read'),
  freezeDeadline: duration.optional().describe('The guest is thawed after this, whatever happens'),
  mergeWait: duration
    .refine(value => value <= 150_000, 'mergeWait is at most 150s: clients give up after 180s')
    .optional()
    .describe('How long a new session waits for a running merge'),
}

const layer = z.strictObject(policy)

export const sourceSchema = z.strictObject({
  listen: z
    .strictObject({
      unix: absolutePath.optional(),
      tcp: tcp.optional(),
      tls: tls.optional(),
      gate: z
        .strictObject({
          group: z
            .string()
            .regex(/^[a-z_][a-z0-9_-]{0,31}$/, 'not a group name')
            .describe('Members may run clone-server gate for authorized clients, without root'),
        })
        .optional(),
    })
    .default({})
    .describe('Where NBD clients connect; a unix socket only, unless tcp or tls is given'),
  runDir: absolutePath.default('/run/nbd-clone'),
  stateDir: absolutePath.default('/var/lib/nbd-clone'),
  libvirtUri: z
    .string()
    .regex(/^[a-z+]+:\/\/[A-Za-z0-9_./:@?=-]*$/, 'not a libvirt URI')
    .default('qemu:///system'),
  restartLibvirt: z
    .array(z.string().min(1))
    .min(1)
    .optional()
    .describe('Command that restarts libvirt, where systemd does not run it'),
  defaults: layer.optional(),
  groups: z.record(name, layer).default({}),
  domains: z
    .record(
      name,
      z.strictObject({
        ...policy,
        group: name.optional(),
        disks: z.record(name, z.strictObject({ exclude: z.boolean().optional() })).optional(),
      }),
    )
    .default({})
    .describe('Only listed domains are exported'),
})

export type SourceConfig = z.infer<typeof sourceSchema>

export interface DomainSettings {
  readonly quiesce: 'required' | 'auto' | 'off'
  readonly overlayDir: string
  readonly merge: MergePolicy
  readonly session: {
    readonly maxAge: number
    readonly stall: number
    /** Bytes per second; 0 switches it off. */
    readonly floor: number
  }
  readonly overlay: { readonly max: Share; readonly reserve: Share }
  readonly hashing: HashingPolicy
  /** Whether QEMU records what changes between recovery points. */
  readonly tracking: boolean
  readonly freezeDeadline: number
  readonly mergeWait: number
  readonly disks: Readonly<Record<string, { readonly exclude?: boolean | undefined }>>
}

/** What holds when no layer says otherwise; durations in milliseconds. */
const BUILT_IN: DomainSettings = {
  quiesce: 'auto',
  overlayDir: '/var/lib/libvirt/images',
  merge: { bandwidth: 0, alarm: 15 * 60_000, pause: 0 },
  session: { maxAge: 6 * 3600_000, stall: 60_000, floor: 64 * 1024 },
  overlay: { max: '20%', reserve: '10%' },
  hashing: { processors: 'half', rate: 'off' },
  tracking: true,
  freezeDeadline: 10_000,
  mergeWait: 120_000,
  disks: {},
}

const DURATIONS = [
  'session.maxAge',
  'session.stall',
  'merge.alarm',
  'merge.pause',
  'freezeDeadline',
  'mergeWait',
]
const SIZES = ['session.floor', 'overlay.max', 'overlay.reserve']

/** An effective value as people read it. @param key dotted, without its layer */
export function formatSetting(key: string, value: unknown): string {
  if (typeof value !== 'number') return String(value)
  if (key === 'hashing.rate') return `${formatSize(value)}/s`
  if (DURATIONS.includes(key)) return formatDuration(value)
  return SIZES.includes(key) ? formatSize(value) : String(value)
}

/** Reads source.yaml. @throws Failure USAGE */
export function readSourceConfig(file: string): SourceConfig {
  const config = readConfig(file, sourceSchema)
  for (const [domain, { group }] of Object.entries(config.domains))
    if (group !== undefined && !config.groups[group])
      throw new Failure('USAGE', `${file}: domains.${domain}.group: there is no group ${group}`)
  return config
}

/** The effective values of one domain and where each comes from. @throws Failure SOURCE_REFUSED if it is not listed */
export function effectiveSettings(config: SourceConfig, domain: string): Effective {
  const own = Object.hasOwn(config.domains, domain) ? config.domains[domain] : undefined
  if (!own)
    throw new Failure('SOURCE_REFUSED', `domain ${domain} is not exported by this source`, {
      remedy: 'list it under domains: in source.yaml on the source',
    })
  const { group, ...values } = own
  return layered([
    { origin: 'built-in', values: { ...BUILT_IN } },
    { origin: 'defaults', values: config.defaults },
    {
      origin: `groups.${group ?? ''}`,
      values: group === undefined ? undefined : config.groups[group],
    },
    { origin: `domains.${domain}`, values },
  ])
}

export function domainSettings(config: SourceConfig, domain: string): DomainSettings {
  const { values } = effectiveSettings(config, domain)
  return { disks: {}, ...values } as unknown as DomainSettings
}

/** How the overlays of a domain are merged, also of one that is no longer listed. */
export function mergePolicy(config: SourceConfig, domain: string): MergePolicy {
  return Object.hasOwn(config.domains, domain)
    ? domainSettings(config, domain).merge
    : BUILT_IN.merge
}
