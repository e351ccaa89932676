// The files of rights: written, removed and listed; reading one for a client that knocks is in rights.ts.

import { mkdir, readdir, readFile, rm } from 'node:fs/promises'
import path from 'node:path'
import { stringify } from 'yaml'
import { parseConfig } from '../../shared/config.ts'
import { Failure, toFailure } from '../../shared/failures.ts'
import { fsyncPath, writeDurably } from '../../shared/host/durable.ts'
import { tryLock } from '../../shared/host/lock.ts'
import { isName } from '../../shared/names.ts'
import { isNarrower } from './narrower.ts'
import { rightsFile, rightsSchema, type Rights } from './rights.ts'

/** Rights as they are written: the bandwidth as text. */
export interface RightsText {
  readonly domains: 'all' | readonly string[]
  readonly verbs?: readonly string[] | undefined
  readonly bandwidth?: string | undefined
  readonly from?: readonly string[] | undefined
}

/** The text of a file of rights. @throws Failure USAGE when it would not be understood */
export function rightsText(client: string, rights: RightsText): string {
  const given = Object.fromEntries(
    Object.entries(rights).filter(([, value]) => value !== undefined),
  )
  const text = `# Written by: clone-server authorize. What client ${client} may do; read whenever it asks.\n${stringify(given)}`
  parseConfig(`client ${client}`, text, rightsSchema)
  return text
}

/**
 * Whether rights that are there get narrower by new ones, so that what is open by them must end.
 * @param text of the new ones
 */
export async function getsNarrower(
  directory: string,
  client: string,
  text: string,
): Promise<boolean> {
  const file = rightsFile(directory, client)
  const before = await readFile(file, 'utf8').catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  })
  if (before === undefined) return false
  const after = parseConfig(`client ${client}`, text, rightsSchema)
  try {
    return isNarrower(parseConfig(file, before, rightsSchema), after)
  } catch {
    return isNarrower(undefined, after)
  }
}

/** One change of clients at a time, on this host. @throws Failure LOCKED */
export async function lockClients(directory: string): Promise<() => void> {
  await mkdir(directory, { recursive: true, mode: 0o700 })
  const lock = tryLock(path.join(directory, '.lock'), `pid ${process.pid}`)
  if (typeof lock === 'function') return lock
  throw new Failure('LOCKED', `clients are being changed by another run (${lock.heldBy})`)
}

export async function writeRights(directory: string, client: string, text: string): Promise<void> {
  await writeDurably(rightsFile(directory, client), text, 0o600)
}

/** @returns whether the client had any */
export async function removeRights(directory: string, client: string): Promise<boolean> {
  const file = rightsFile(directory, client)
  const removed = await rm(file).then(
    () => true,
    (error: unknown) => {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false
      throw error
    },
  )
  if (removed) await fsyncPath(directory)
  return removed
}

export interface ListedClient {
  readonly client: string
  /** Undefined when the file cannot be understood; `reason` says why. */
  readonly rights: Rights | undefined
  readonly reason: string | undefined
}

/** Every client that has a file, in the order of their names. */
export async function listClients(directory: string): Promise<ListedClient[]> {
  const files = await readdir(directory).catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return []
    throw error
  })
  const names = files.filter(file => file.endsWith('.yaml')).map(file => file.slice(0, -5))
  return Promise.all(
    names
      .filter(isName)
      .sort()
      .map(async client => {
        const file = path.join(directory, `${client}.yaml`)
        try {
          const rights = parseConfig(file, await readFile(file, 'utf8'), rightsSchema)
          return { client, rights, reason: undefined }
        } catch (error) {
          return { client, rights: undefined, reason: toFailure(error).message }
        }
      }),
  )
}
