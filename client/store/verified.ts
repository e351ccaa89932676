// When and how thoroughly a generation was last verified: generation.json says how it was published, verified.json of each
// full read-back since.

import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { z } from 'zod'
import { writeDurably } from '../../shared/host/durable.ts'
import type { Generation, Sound } from './generation.ts'

const recordSchema = z.object({
  schema: z.literal(1),
  /** Every byte of every image was read back from the medium, and matched its manifest. */
  level: z.literal('all'),
  /** When that was done, this host's clock. */
  at: z.iso.datetime(),
})

export interface LastVerified {
  /** The latest that is known, of whatever level. */
  readonly level: Generation['verified']['level']
  /** ISO 8601, this host's clock. */
  readonly at: string
  /** When all of it was last read back; unset when it never was. */
  readonly fullAt?: string
}

const fileIn = (dir: string): string => path.join(dir, 'verified.json')

/** Records a full read-back that found nothing wrong, durably. Only under the clone's lock. */
export async function recordVerified(dir: string, at = new Date()): Promise<void> {
  const record: z.input<typeof recordSchema> = { schema: 1, level: 'all', at: at.toISOString() }
  await writeDurably(fileIn(dir), `${JSON.stringify(record, undefined, 2)}\n`, 0o600)
}

/** A record that cannot be read counts as none: what was not proven has to be done again. */
export async function verifiedOf({
  dir,
  generation,
}: Pick<Sound, 'dir' | 'generation'>): Promise<LastVerified> {
  const { level, at } = generation.verified
  const published: LastVerified = { level, at, ...(level === 'all' && { fullAt: at }) }
  const text = await readFile(fileIn(dir), 'utf8').catch(() => undefined)
  if (text === undefined) return published
  try {
    const record = recordSchema.parse(JSON.parse(text))
    return { level: record.level, at: record.at, fullAt: record.at }
  } catch {
    return published
  }
}
