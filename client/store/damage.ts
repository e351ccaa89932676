// damaged.json: what `clone verify` found wrong with a generation, kept beside it until a verify finds nothing any more.

import { readFile, rm } from 'node:fs/promises'
import path from 'node:path'
import { z } from 'zod'
import { fsyncPath, writeDurably } from '../../shared/host/durable.ts'

const recordSchema = z.object({
  schema: z.literal(1),
  /** When it was found, this host's clock. */
  at: z.iso.datetime(),
  problems: z.array(z.string()).min(1),
})

const fileIn = (dir: string): string => path.join(dir, 'damaged.json')

/** Records durably what is wrong, so that the generation counts no more. Only under the clone's lock. */
export async function markDamaged(dir: string, problems: readonly string[]): Promise<void> {
  const record = { schema: 1, at: new Date().toISOString(), problems }
  await writeDurably(fileIn(dir), `${JSON.stringify(record, undefined, 2)}\n`, 0o600)
}

/** Forgets the damage after everything was read back and matched. Only under the clone's lock. */
export async function clearDamage(dir: string): Promise<void> {
  await rm(fileIn(dir))
  await fsyncPath(dir)
}

/** What is wrong with a generation as far as it is known. A record that cannot be read counts as damage, too. */
export async function damageOf(dir: string): Promise<string | undefined> {
  const file = fileIn(dir)
  try {
    return recordSchema.parse(JSON.parse(await readFile(file, 'utf8'))).problems.join('; ')
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ENOENT') return undefined
    return `${file} cannot be ${code === undefined ? 'understood' : `read (${code})`}, so what is wrong is unknown`
  }
}
