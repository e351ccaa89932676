// damaged.json: what `clone verify` found wrong with a generation, kept beside it until a verify finds nothing any more.

import { readFile, rm } from 'node:fs/promises'
import path from 'node:path'
import { fsyncPath, writeDurably } from '../../shared/host/durable.ts'

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
  let text: string
  try {
    text = await readFile(file, 'utf8')
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    return code === 'ENOENT' ? undefined : message
  }
  try {
    const { problems } = JSON.parse(text) as { problems: string[] }
    return problems.join('; ') || file
  } catch {
    return file
  }
}
