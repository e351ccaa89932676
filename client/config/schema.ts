// The shape of standby.yaml: what may be written, and the cross-checks that one key alone cannot make.

import { z } from 'zod'
import { isName, NAME_RULE } from '../../shared/names.ts'
import { age, duration } from '../../shared/quantities.ts'
import { timetable } from '../../shared/timetable.ts'

const name = z.string().refine(isName, NAME_RULE)
const absolutePath = z.string().regex(/^\/[^\0]*$/, 'must be an absolute path')
const blockDevice = z.string().regex(/^\/dev\/[^\0\n]+$/, 'must be a path in /dev')
/** A leading letter, digit or colon, so that it can never be taken for an option of ssh. */
const host = z
  .string()
  .max(255)
  .regex(/^[A-Za-z0-9:][A-Za-z0-9.:_-]*$/, 'not a host name or address')
const port = z.number().int().min(1).max(65_535)
const word = z.string().regex(/^[^\0\n]+$/, 'must be one non-empty word')

const ssh = z.strictObject({
  user: z
    .string()
    .regex(/^[A-Za-z_][A-Za-z0-9_.-]{0,31}$/, 'not a user name')
    .optional(),
  port: port.optional(),
  identity: absolutePath.optional(),
  options: z
    .array(z.string().regex(/^[A-Za-z][A-Za-z0-9]*=[^\0\n]+$/, 'an ssh option is Key=value'))
    .optional(),
  hostKey: z
    .string()
    .regex(
      /^SHA256:[A-Za-z0-9+/]{43}$/,
      'must be a fingerprint as ssh-keygen -l prints it: SHA256: and 43 characters',
    )
    .optional(),
  knownHosts: absolutePath.optional(),
})

function gateOf(source: {
  transport: string
  gate?: 'local' | 'ssh' | undefined
}): 'local' | 'ssh' {
  return source.gate ?? (source.transport === 'unix' ? 'local' : 'ssh')
}

const tls = z.strictObject({
  ca: absolutePath.describe("Authority of the source's certificate, PEM"),
  cert: absolutePath.describe("This standby's certificate, PEM"),
  key: absolutePath.describe('Its key, PEM, readable by its owner alone'),
  servername: host.optional().describe("Name in the source's certificate, when it is not host"),
})

export const LOOPBACK = /^(localhost|127(\.\d{1,3}){3}|::1)$/

const source = z
  .strictObject({
    transport: z.enum(['unix', 'tcp', 'tls', 'ssh']),
    socket: absolutePath.default('/run/nbd-clone/nbd.sock'),
    host: host.optional(),
    port: port.default(10_809),
    insecure: z.boolean().default(false),
    gate: z.enum(['local', 'ssh']).optional(),
    gateCommand: z.array(word).min(1).optional(),
    ssh: ssh.optional(),
    tls: tls.optional(),
  })
  .superRefine((source, context) => {
    const complain = (key: string, message: string): void =>
      context.addIssue({ code: 'custom', path: [key], message })
    if (source.transport !== 'unix' && source.host === undefined)
      complain('transport', `transport ${source.transport} needs host`)
    if (source.transport === 'ssh' && source.gate === 'local')
      complain('gate', 'the gate of a source that is reached by ssh is there: leave gate out')
    if (source.transport === 'tls' && source.tls === undefined)
      complain('transport', 'transport tls needs tls: { ca, cert, key }')
    if (source.transport !== 'tls' && source.tls !== undefined)
      complain('tls', `tls is for transport tls, and this is ${source.transport}`)
    if (
      source.transport === 'tcp' &&
      source.host !== undefined &&
      !LOOPBACK.test(source.host) &&
      !source.insecure
    )
      complain(
        'insecure',
        'NBD over tcp is unencrypted: set insecure: true to accept that on a network you trust, or use ssh',
      )
    if (source.gate === 'ssh' && source.host === undefined) complain('gate', 'gate ssh needs host')
    if (gateOf(source) === 'ssh' && source.gateCommand !== undefined)
      complain(
        'gateCommand',
        'gateCommand is for gate: local; over ssh the source runs what it has authorized the key for',
      )
  })
  .transform(({ gateCommand = ['clone-server', 'gate'], ...source }) => ({
    ...source,
    gate: gateOf(source),
    gateCommand,
  }))
export type Source = z.infer<typeof source>

const periods = z.number().int().min(0, 'how many to keep is 0 (none) or more').optional()
/** As getent takes it: never an option. */
const account = z
  .union([z.string(), z.number().int().nonnegative()])
  .transform(String)
  .refine(text => /^[A-Za-z0-9_][A-Za-z0-9_.@\\-]{0,99}\$?$/.test(text), 'not a name or number')
/** Only text: YAML reads 0640 as six hundred and forty. */
const octal = (wanted: RegExp, rule: string) =>
  z.string({ error: `must be octal and in quotes, e.g. '0640'` }).regex(wanted, rule)

const ownership = z.strictObject({
  owner: account.optional(),
  group: account.optional(),
  mode: octal(
    /^0?6[046][04]$/,
    "must be octal: read and write for the owner, nothing to execute, nothing to write for all, e.g. '0640'",
  ).optional(),
  dirMode: octal(
    /^[02]?7[0-7][0145]$/,
    "must be octal: all rights for the owner, nothing to write for all, e.g. '0750'",
  ).optional(),
})

/** What every layer may set: defaults, groups and domains. */
const settings = {
  source: name.optional(),
  rpo: duration.optional(),
  keep: z
    .strictObject({
      last: z
        .number()
        .int()
        .min(2, 'keep.last is at least 2: the newest, and one to fall back to')
        .optional(),
      hourly: periods,
      daily: periods,
      weekly: periods,
      monthly: periods,
    })
    .optional(),
  generations: z.enum(['auto', 'reflink', 'in-place', 'copy']).optional(),
  verify: z.enum(['readback', 'source']).optional(),
  reverify: z.union([z.literal('off'), age], 'off, or an age, e.g. 7d').optional(),
  fullCompareEvery: z.union([z.literal('off'), age], 'off, or an age, e.g. 7d').optional(),
  stall: duration.optional(),
  maxDuration: duration.optional(),
  ownership: ownership.optional(),
}
const layer = z.strictObject(settings)
const domain = z.strictObject({
  ...settings,
  domain: name.optional(),
  group: name.optional(),
  disks: z
    .record(
      name,
      z.strictObject({ exclude: z.boolean().optional(), device: blockDevice.optional() }),
    )
    .optional(),
})

export const standbySchema = z
  .strictObject({
    store: absolutePath.default('/var/lib/nbd-clone/clones'),
    limitRate: timetable
      .optional()
      .describe(
        "how fast all pulls of one clone command may read: off, a rate (20MiB/s), or a timetable by local time ('08:00 20MiB/s, 20:00 off')",
      ),
    sources: z.record(name, source).default({}),
    defaults: layer.default({}),
    groups: z.record(name, layer).default({}),
    domains: z.record(name, domain).default({}),
  })
  .superRefine((config, context) => {
    const layers: [string[], { source?: string | undefined }][] = [[['defaults'], config.defaults]]
    for (const [key, group] of Object.entries(config.groups)) layers.push([['groups', key], group])
    for (const [key, domain] of Object.entries(config.domains)) {
      const path = ['domains', key]
      layers.push([path, domain])
      if (domain.group !== undefined && !Object.hasOwn(config.groups, domain.group))
        context.addIssue({
          code: 'custom',
          path: [...path, 'group'],
          message: `there is no group ${domain.group}`,
        })
      const group = domain.group === undefined ? undefined : config.groups[domain.group]
      if ((domain.source ?? group?.source ?? config.defaults.source) === undefined)
        context.addIssue({ code: 'custom', path, message: 'no source is set' })
    }
    const devices = new Map<string, string>()
    for (const [key, domain] of Object.entries(config.domains))
      for (const [target, { device }] of Object.entries(domain.disks ?? {})) {
        const path = ['domains', key, 'disks', target, 'device']
        const other = device === undefined ? undefined : devices.get(device)
        if (other !== undefined)
          context.addIssue({ code: 'custom', path, message: `${other} is ${String(device)} too` })
        if (device !== undefined) devices.set(device, path.slice(0, -1).join('.'))
      }
    for (const [path, { source }] of layers)
      if (source !== undefined && !Object.hasOwn(config.sources, source))
        context.addIssue({
          code: 'custom',
          path: [...path, 'source'],
          message: `there is no source ${source}`,
        })
  })
export type StandbyConfig = z.infer<typeof standbySchema>

/** The JSON Schema of standby.yaml, for editors. */
export function standbyJsonSchema(): object {
  return z.toJSONSchema(standbySchema, { io: 'input' })
}
