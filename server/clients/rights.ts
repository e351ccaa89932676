// What a client may do here: one file per client, read whenever it is asked for, so that no restart is needed.

import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { z } from 'zod'
import { parseConfig } from '../../shared/config.ts'
import { Failure, toFailure } from '../../shared/failures.ts'
import { checkName, isName, NAME_RULE } from '../../shared/names.ts'
import { rate } from '../../shared/quantities.ts'
import { isFrom, networkOf, rangeOf } from './ranges.ts'

export const VERBS = ['describe', 'pull', 'digests'] as const
export type Verb = (typeof VERBS)[number]

/** Whoever can open serve.sock without a name is root on this host already. */
export const LOCAL = 'local'
/** Words that `status` has for others. */
const RESERVED: readonly string[] = [LOCAL, 'operator']

/** Below it a session of this client would be ended for being too slow. */
const LEAST_BANDWIDTH = 128 * 1024

const address = z.string().superRefine((text, context) => {
  const range = rangeOf(text)
  if (!range) {
    context.addIssue('an IP address, or a range such as 192.0.2.0/24')
    return
  }
  // sshd takes such a range for a fault of the whole line, and lets the key in from nowhere.
  const network = networkOf(range)
  if (text.includes('/') && network !== text)
    context.addIssue(`${text} is no network: the one that this address lies in is ${network}`)
})

export const rightsSchema = z.strictObject({
  domains: z
    .union([z.literal('all'), z.array(z.string().refine(isName, NAME_RULE)).min(1).max(1000)])
    .describe('Domains that the client may ask for; all: those that source.yaml lists'),
  verbs: z
    .array(z.enum(VERBS))
    .min(1)
    .default([...VERBS])
    .describe('What it may do with them'),
  bandwidth: rate(LEAST_BANDWIDTH)
    .optional()
    .describe('For all of its NBD streams together, e.g. 20MiB/s'),
  from: z.array(address).min(1).max(100).optional().describe('Addresses that it may come from'),
})
export type Rights = z.infer<typeof rightsSchema>

export const ALL_RIGHTS: Rights = { domains: 'all', verbs: [...VERBS] }

/** Whether a name means somebody on this host, so that nobody else may come by it, whatever proves it. */
export function isReserved(client: string): boolean {
  return RESERVED.includes(client)
}

/** The name of a client that can be authorized. @throws Failure USAGE */
export function checkClient(client: string): string {
  if (!isReserved(client)) return checkName('client', client)
  throw new Failure('USAGE', `no client can be named ${client}: it means somebody on this host`)
}

export function rightsFile(directory: string, client: string): string {
  return path.join(directory, `${checkClient(client)}.yaml`)
}

/**
 * The rights of a client as they are now.
 * @param directory one file per client
 * @throws Failure SOURCE_REFUSED when it has none, or they cannot be understood
 */
export async function readRights(directory: string, client: string): Promise<Rights> {
  const missing = new Failure('SOURCE_REFUSED', `client ${client} is not authorized here`, {
    remedy: RESERVED.includes(client)
      ? 'name a client that is authorized: clone-server gate --client NAME'
      : `on the source run: clone-server authorize KEY --client ${client} --domains ...`,
  })
  if (isReserved(client)) throw missing
  const file = rightsFile(directory, client)
  try {
    return parseConfig(file, await readFile(file, 'utf8'), rightsSchema)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') throw missing
    throw new Failure('SOURCE_REFUSED', `the rights of client ${client} cannot be read`, {
      remedy: 'on the source run: clone-server clients',
      cause: toFailure(error),
    })
  }
}

/** @throws Failure SOURCE_REFUSED unless the rights are good for a client at this address */
export function permitPeer(client: string, rights: Rights, peer: string | undefined): void {
  if (rights.from === undefined || isFrom(rights.from, peer)) return
  throw new Failure('SOURCE_REFUSED', `client ${client} may not come from ${peer ?? 'here'}`)
}

/**
 * @param domain the one that is asked for; undefined: any
 * @throws Failure SOURCE_REFUSED unless the client may; it says the same of a domain that is not there
 */
export function permit(client: string, rights: Rights, verb: Verb, domain?: string): void {
  if (!rights.verbs.includes(verb))
    throw new Failure('SOURCE_REFUSED', `client ${client} may not ask for ${verb} here`)
  if (domain === undefined || mayHave(rights, domain)) return
  throw new Failure('SOURCE_REFUSED', `client ${client} may not have domain ${domain}`, {
    remedy: `on the source look at: clone-server clients`,
  })
}

export function mayHave({ domains }: Rights, domain: string): boolean {
  return domains === 'all' || domains.includes(domain)
}
