// generation.json: all that is needed to use a generation's images without this software. Validated when read back.

import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { z } from 'zod'
import { consistency, diskFormat } from '../../shared/gate.ts'
import { isName, isRecoveryPointId, NAME_RULE } from '../../shared/names.ts'
import { damageOf } from './damage.ts'
import { imageName, layoutOf, recoveryPointsIn } from './layout.ts'

const name = z.string().refine(isName, NAME_RULE)
const count = z.number().int().nonnegative()
const digest = z.string().regex(/^[0-9a-f]{64}$/, 'not a SHA-256')
const named = z.object({ name: z.string(), xml: z.string() })

export const generationSchema = z.object({
  schema: z.literal(1),
  /** The order of a clone's generations; clocks have no say. */
  seq: count.min(1),
  /** libvirt's name of the domain on the source. */
  domain: name,
  source: z.object({ hostId: z.uuid(), domainUuid: z.uuid(), epoch: count }),
  recoveryPoint: z.object({
    id: z.string().refine(isRecoveryPointId, 'not a recovery point id'),
    /** The source's clock. */
    instant: z.iso.datetime(),
    consistency,
    /** The source's clock minus the standby's, milliseconds. */
    clockSkewMs: z.number().int(),
  }),
  chunkSize: count.min(1),
  disks: z
    .array(
      z.object({
        target: name,
        format: diskFormat,
        size: count,
        /** SHA-256 of the manifest file. */
        digest,
        layers: z.array(z.never()),
        /** What it was before `clone export --format` converted it; the guest sees the same bytes. */
        convertedFrom: z.object({ format: diskFormat, size: count, digest }).optional(),
      }),
    )
    .min(1),
  /** Disks of the domain that are not in here, and why. */
  omitted: z.array(z.object({ target: name, reason: z.string() })).default([]),
  /** Files beside this one; live is null when the domain was off, nvram when it has none. */
  definition: z.object({
    inactive: z.literal('domain.xml'),
    live: z.literal('live.xml').nullable(),
  }),
  nvram: z.literal('nvram.fd').nullable(),
  networks: z.array(named),
  pools: z.array(named),
  host: z.object({
    libvirt: z.string(),
    qemu: z.string(),
    arch: z.string(),
    machine: z.string(),
    cpu: z.string(),
  }),
  /** `all`: every byte was read back from the medium and matched its manifest. */
  verified: z.object({ level: z.enum(['changed', 'all', 'source']), at: z.iso.datetime() }),
})
export type Generation = z.infer<typeof generationSchema>

/** A generation on disk; `broken` says why its generation.json cannot be used, `damaged` what a verify found. */
export type Found =
  | {
      readonly id: string
      readonly dir: string
      readonly generation: Generation
      readonly broken?: never
      readonly damaged?: string
    }
  | {
      readonly id: string
      readonly dir: string
      readonly generation?: never
      readonly broken: string
      readonly damaged?: never
    }

/** Reads one generation's folder; never throws for what is wrong in there. */
export async function readGeneration(dir: string): Promise<Found> {
  const id = path.basename(dir)
  const file = path.join(dir, 'generation.json')
  try {
    const parsed = generationSchema.safeParse(JSON.parse(await readFile(file, 'utf8')))
    if (!parsed.success) {
      const issue = parsed.error.issues[0]
      return { id, dir, broken: `${file}: ${issue?.path.join('.') ?? ''}: ${issue?.message ?? ''}` }
    }
    if (parsed.data.recoveryPoint.id !== id)
      return { id, dir, broken: `${file}: it is of ${parsed.data.recoveryPoint.id}` }
    const damaged = await damageOf(dir)
    return { id, dir, generation: parsed.data, ...(damaged !== undefined && { damaged }) }
  } catch (error) {
    return { id, dir, broken: `${file}: ${error instanceof Error ? error.message : String(error)}` }
  }
}

/** All generations of a clone: the sound ones by seq, oldest first, after them the broken ones. */
export async function listGenerations(cloneDir: string): Promise<Found[]> {
  const { generations } = layoutOf(cloneDir)
  const ids = await recoveryPointsIn(generations)
  const found = await Promise.all(ids.map(id => readGeneration(path.join(generations, id))))
  const seq = (one: Found): number => one.generation?.seq ?? Infinity
  return found.sort((a, b) => (seq(a) === seq(b) ? a.id.localeCompare(b.id) : seq(a) - seq(b)))
}

export type Sound = Extract<Found, { generation: Generation }>
export const isSound = (found: Found): found is Sound => found.generation !== undefined

/** Not known to be damaged: only these count for freshness, retention and `current`. */
export const isUndamaged = (found: Sound): boolean => found.damaged === undefined

/** The sound generations, oldest first. */
export async function soundGenerations(cloneDir: string): Promise<Sound[]> {
  return (await listGenerations(cloneDir)).filter(isSound)
}

/** The image files of a generation. */
export function imagesOf({ dir, generation }: Sound): string[] {
  return generation.disks.map(disk => path.join(dir, imageName(disk)))
}
