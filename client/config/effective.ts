// One clone's effective settings: built-in < defaults < groups < domains, each value with its origin.

import path from 'node:path'
import { z } from 'zod'
import { layered, readConfig, type Effective } from '../../shared/config.ts'
import { Failure } from '../../shared/failures.ts'
import type { KeepPolicy } from '../store/keep.ts'
import type { Method } from '../store/method.ts'
import type { NamedSource } from '../source/source.ts'
import { NO_USER } from '../source/user.ts'
import { standbySchema, type StandbyConfig } from './schema.ts'

export const CONFIG_FILE = '/etc/nbd-clone/standby.yaml'

const HOUR = 3_600_000
const KEEP: KeepPolicy = { last: 3, hourly: 0, daily: 0, weekly: 0, monthly: 0 }
const BUILT_IN = {
  rpo: 24 * HOUR,
  keep: KEEP,
  generations: 'auto',
  verify: 'readback',
  stall: 60_000,
  reverify: 7 * 24 * HOUR,
  fullCompareEvery: 7 * 24 * HOUR,
  ownership: { mode: '0600', dirMode: '0700' },
}

/** Whose a clone's files shall be: names or numbers as configured, modes in octal. */
export interface OwnershipSettings {
  readonly owner?: string | undefined
  readonly group?: string | undefined
  readonly mode: string
  readonly dirMode: string
}

/** Everything a command needs to know about one clone. */
export interface CloneConfig {
  /** The key in standby.yaml, and the clone's folder. */
  readonly name: string
  readonly dir: string
  /** libvirt's name of the domain on the source. */
  readonly domain: string
  readonly source: NamedSource
  /** Milliseconds. */
  readonly rpoMs: number
  readonly keep: KeepPolicy
  /** Milliseconds without a byte after which the source counts as dead. */
  readonly stallMs: number
  /** How generations are kept; `auto`: as the store's file system allows. */
  readonly generations: Method | 'auto'
  /** What must agree before a generation is published: its medium, or the source's digests besides. */
  readonly verify: 'readback' | 'source'
  /** How old the last full read-back may be, milliseconds; undefined when none is scheduled. */
  readonly reverifyMs: number | undefined
  /** How old the last comparison of everything may be, milliseconds; undefined when none is scheduled. */
  readonly compareEveryMs: number | undefined
  /** Milliseconds until a pull that has not read everything stops; undefined: as long as it takes. */
  readonly maxDurationMs: number | undefined
  readonly excluded: ReadonlySet<string>
  /** Targets whose images are kept on a block device -> its path. */
  readonly devices: ReadonlyMap<string, string>
  readonly ownership: OwnershipSettings
}

const effective = z.object({
  source: z.string(),
  domain: z.string(),
  rpo: z.number(),
  keep: z.object({
    last: z.number(),
    hourly: z.number(),
    daily: z.number(),
    weekly: z.number(),
    monthly: z.number(),
  }),
  generations: z.enum(['auto', 'reflink', 'in-place', 'copy']),
  verify: z.enum(['readback', 'source']),
  stall: z.number(),
  reverify: z.union([z.literal('off'), z.number()]),
  fullCompareEvery: z.union([z.literal('off'), z.number()]),
  maxDuration: z.number().optional(),
  disks: z
    .record(
      z.string(),
      z.object({ exclude: z.boolean().optional(), device: z.string().optional() }),
    )
    .default({}),
  ownership: z.object({
    owner: z.string().optional(),
    group: z.string().optional(),
    mode: z.string(),
    dirMode: z.string(),
  }),
})

/** @throws Failure USAGE naming file, line, key and reason */
export function loadConfig(file: string): StandbyConfig {
  return readConfig(path.resolve(file), standbySchema)
}

/** The effective values of a clone and where each comes from. @throws Failure USAGE for a clone that is not configured */
export function explain(config: StandbyConfig, clone: string): Effective {
  const own = Object.hasOwn(config.domains, clone) ? config.domains[clone] : undefined
  if (!own) {
    const known = Object.keys(config.domains).join(', ') || 'none'
    throw new Failure('USAGE', `unknown domain ${JSON.stringify(clone)}; configured: ${known}`)
  }
  const { group, ...values } = own
  return layered([
    { origin: 'built-in', values: { ...BUILT_IN, domain: clone } },
    { origin: 'defaults', values: config.defaults },
    ...(group === undefined ? [] : [{ origin: `groups.${group}`, values: config.groups[group] }]),
    { origin: `domains.${clone}`, values },
  ])
}

/** @param user who runs the command, if anybody does. @throws Failure USAGE for a clone that is not configured */
export function cloneConfig(config: StandbyConfig, clone: string, user = NO_USER): CloneConfig {
  const values = effective.parse(explain(config, clone).values)
  const source = config.sources[values.source]
  if (!source) throw new Failure('USAGE', `there is no source ${values.source}`)
  const disks = Object.entries(values.disks)
  return {
    name: clone,
    dir: path.join(config.store, clone),
    domain: values.domain,
    source: { ...source, name: values.source, user },
    rpoMs: values.rpo,
    keep: values.keep,
    stallMs: values.stall,
    generations: values.generations,
    verify: values.verify,
    reverifyMs: values.reverify === 'off' ? undefined : values.reverify,
    compareEveryMs: values.fullCompareEvery === 'off' ? undefined : values.fullCompareEvery,
    maxDurationMs: values.maxDuration,
    devices: new Map(
      disks.flatMap(([target, { device }]) => (device === undefined ? [] : [[target, device]])),
    ),
    excluded: new Set(disks.filter(([, disk]) => disk.exclude).map(([target]) => target)),
    ownership: values.ownership,
  }
}
