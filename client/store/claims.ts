// Claims: small files in `<generation>/claims/` that hold a generation against prune, and against whatever would patch its
// images away. Any file in there counts, whatever made it, so that `touch` is enough and a torn one still holds.

import { mkdir, open, readdir, readFile, rm } from 'node:fs/promises'
import path from 'node:path'
import { z } from 'zod'
import type { Cleanup } from '../../shared/cleanup.ts'
import { Failure } from '../../shared/failures.ts'
import { fsyncPath } from '../../shared/host/durable.ts'
import { processStart } from '../../shared/host/process.ts'
import { checkName } from '../../shared/names.ts'

/** What we write into a claim; everything in it but its name is only told to people, and tells whether it is stale. */
const claimSchema = z.object({
  schema: z.literal(1),
  purpose: z.string(),
  at: z.iso.datetime(),
  /** Held for the life of one process: its id, and its start in clock ticks since boot. */
  pid: z.number().int().positive().optional(),
  start: z.string().optional(),
})

export interface Claim {
  /** The file's name, by which it is released. */
  readonly name: string
  /** What it is for, and which process holds it, for people. */
  readonly text: string
  /** Its process is gone, so that it holds nothing any more. */
  readonly stale: boolean
  /** ISO 8601, when it is known. */
  readonly at?: string
  readonly pid?: number
}

/** A generation's folder, as far as claims need it. */
interface Claimable {
  readonly id: string
  readonly dir: string
}

const folderOf = (dir: string): string => path.join(dir, 'claims')

/**
 * Every claim on the generation in `dir`, by name. What cannot be read counts as a claim: it may be one.
 * @param dir of the generation
 */
export async function claimsOf(dir: string): Promise<Claim[]> {
  let names: string[]
  try {
    names = await readdir(folderOf(dir))
  } catch (error) {
    const { code = String(error) } = error as NodeJS.ErrnoException
    if (code === 'ENOENT') return []
    return [{ name: '', text: `${folderOf(dir)} cannot be read: ${code}`, stale: false }]
  }
  return Promise.all(names.sort().map(name => readClaim(dir, name)))
}

async function readClaim(dir: string, name: string): Promise<Claim> {
  const plain = { name, text: name, stale: false }
  const text = await readFile(path.join(folderOf(dir), name), 'utf8').catch(() => undefined)
  if (text === undefined) return plain
  let parsed: ReturnType<typeof claimSchema.safeParse>
  try {
    parsed = claimSchema.safeParse(JSON.parse(text))
  } catch {
    return plain
  }
  if (!parsed.success) return plain
  const { purpose, at, pid, start } = parsed.data
  if (pid === undefined) return { ...plain, at }
  const stale = start === undefined || (await processStart(pid)) !== start
  return { name, text: `${purpose} (process ${pid})`, stale, at, pid }
}

/** The claims that hold, in words; undefined when nothing does. */
export async function claimReason(dir: string): Promise<string | undefined> {
  const holding = (await claimsOf(dir)).filter(({ stale }) => !stale)
  return holding.length === 0 ? undefined : `claimed: ${holding.map(({ text }) => text).join(', ')}`
}

/**
 * Claims a generation, durably, until it is released. Only under the clone's lock.
 * @param purpose a name. @throws Failure USAGE for a bad name; UNSAFE when there is such a claim already
 */
export async function claim({ id, dir }: Claimable, purpose: string): Promise<void> {
  checkName('purpose', purpose)
  const at = new Date().toISOString()
  await write(dir, purpose, { schema: 1, purpose, at }).catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
    throw new Failure('UNSAFE', `generation ${id} is claimed for ${purpose} already`, {
      cause: error,
      remedy: 'take another purpose: of two who share a claim, the first to release it ends both',
    })
  })
}

/**
 * Ends a claim, durably. @throws Failure USAGE when there is none of that name; UNSAFE when a process that lives holds it
 */
export async function release({ id, dir }: Claimable, name: string): Promise<void> {
  checkName('purpose', name)
  const found = (await claimsOf(dir)).find(one => one.name === name)
  if (!found) throw new Failure('USAGE', `generation ${id} is not claimed for ${name}`)
  if (found.pid !== undefined && !found.stale)
    throw new Failure('UNSAFE', `generation ${id} is in use by process ${found.pid}: ${name}`, {
      remedy: 'it releases its claim when it ends',
    })
  await remove(dir, name)
}

/**
 * Claims a generation for the life of this process. `cleanup` releases it; after a SIGKILL or a power cut the next command
 * sees that the process is gone. Only under the clone's lock, which may be freed while the claim lasts.
 * @param purpose a name, e.g. `export`
 */
export async function withClaim(
  { dir }: Claimable,
  purpose: string,
  cleanup: Cleanup,
): Promise<void> {
  const { pid } = process
  const start = await processStart(pid)
  const name = `${checkName('purpose', purpose)}-${pid}`
  // An older process of the same id is gone, for we have the id now.
  await rm(path.join(folderOf(dir), name), { force: true })
  cleanup.defer(() => remove(dir, name))
  await write(dir, name, { schema: 1, purpose, at: new Date().toISOString(), pid, start })
}

/** Whether there is anything for `removeStaleClaims`. */
export async function hasStaleClaims(generations: readonly Claimable[]): Promise<boolean> {
  const claims = await Promise.all(generations.map(({ dir }) => claimsOf(dir)))
  return claims.flat().some(({ stale }) => stale)
}

/** Removes the claims of processes that are gone. Only under the clone's lock. */
export async function removeStaleClaims(generations: readonly Claimable[]): Promise<void> {
  for (const { dir } of generations)
    for (const { name, stale } of await claimsOf(dir)) if (stale) await remove(dir, name)
}

/** In place and not beside with a rename: half of a claim is a claim, and `.new` would be one too. */
async function write(
  dir: string,
  name: string,
  content: z.input<typeof claimSchema>,
): Promise<void> {
  const folder = folderOf(dir)
  const file = path.join(folder, name)
  const made = await mkdir(folder, { recursive: true, mode: 0o700 })
  if (made !== undefined) await fsyncPath(dir)
  const handle = await open(file, 'wx', 0o600)
  try {
    await handle.writeFile(`${JSON.stringify(content)}\n`)
    await handle.sync()
  } catch (error) {
    await rm(file, { force: true })
    throw error
  } finally {
    await handle.close()
  }
  await fsyncPath(folder)
}

async function remove(dir: string, name: string): Promise<void> {
  await rm(path.join(folderOf(dir), name), { force: true })
  await fsyncPath(folderOf(dir))
}
