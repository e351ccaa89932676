// authorize: a client's rights into a file of their own, and its key into a line for sshd.

import { mkdir } from 'node:fs/promises'
import { homedir } from 'node:os'
import path from 'node:path'
import { Failure } from '../../shared/failures.ts'
import type { SourceConfig } from '../config/schema.ts'
import { authorizedLine, forcedCommand, withLine } from '../clients/authorized-keys.ts'
import { readKeyFile, writeKeyFile } from '../clients/key-file.ts'
import { programWords } from '../clients/program-words.ts'
import { readPublicKey } from '../clients/public-key.ts'
import { lockClients, rightsText, writeRights, type RightsText } from '../clients/registry.ts'
import { checkClient, rightsFile } from '../clients/rights.ts'

export interface AuthorizeOptions {
  /** A file, the key's text, or `-` for standard input. */
  readonly key: string
  readonly client: string
  /** Names with commas between them, or `all`. */
  readonly domains: string
  readonly verbs: string | undefined
  readonly bandwidth: string | undefined
  readonly from: string | undefined
  readonly install: boolean
  readonly file: string | undefined
  readonly dryRun: boolean
}

export interface Authorized {
  readonly client: string
  readonly fingerprint: string
  /** For authorized_keys. */
  readonly line: string
  readonly rightsFile: string
  /** Where the line was put; undefined: nowhere. */
  readonly installed: string | undefined
  readonly dryRun: boolean
  /** Domains that source.yaml does not list. */
  readonly unlisted: readonly string[]
}

/** Where sshd looks for the keys of the user who runs this. */
export const ownKeyFile = (): string => path.join(homedir(), '.ssh', 'authorized_keys')

/**
 * @param where the configuration, its file where that is not the default, and the directory of the rights
 * @throws Failure USAGE, UNSAFE (the key is there already with other options), LOCKED; nothing is changed then
 */
export async function authorize(
  where: { config: SourceConfig; configFile: string | undefined; clients: string },
  options: AuthorizeOptions,
  readInput: () => Promise<string>,
): Promise<Authorized> {
  const client = checkClient(options.client)
  const key = await readPublicKey(options.key, readInput)
  const rights: RightsText = {
    domains: domainsOf(options.domains),
    verbs: options.verbs === undefined ? undefined : listOf(options.verbs),
    bandwidth: options.bandwidth,
    from: options.from === undefined ? undefined : listOf(options.from),
  }
  const text = rightsText(client, rights)
  const command = forcedCommand(await programWords(), client, where.configFile)
  const line = authorizedLine(key, command, rights.from)
  const file = options.file ?? ownKeyFile()
  if (!options.dryRun) {
    const unlock = await lockClients(where.clients)
    try {
      const keys = options.install ? withLine(await readKeyFile(file), client, line) : undefined
      await writeRights(where.clients, client, text)
      if (keys !== undefined) {
        if (options.file === undefined)
          await mkdir(path.dirname(file), { recursive: true, mode: 0o700 })
        await writeKeyFile(file, keys)
      }
    } finally {
      unlock()
    }
  } else if (options.install) withLine(await readKeyFile(file), client, line)
  const { domains } = rights
  return {
    client,
    fingerprint: key.fingerprint,
    line,
    rightsFile: rightsFile(where.clients, client),
    installed: options.install ? file : undefined,
    dryRun: options.dryRun,
    unlisted:
      domains === 'all' ? [] : domains.filter(one => !Object.hasOwn(where.config.domains, one)),
  }
}

/** @throws Failure USAGE when `all` is one of several */
function domainsOf(text: string): 'all' | string[] {
  const names = listOf(text)
  if (!names.includes('all')) return names
  if (names.length === 1) return 'all'
  throw new Failure('USAGE', `--domains ${text}: all stands alone`)
}

function listOf(text: string): string[] {
  return text.split(',').map(word => word.trim())
}

/** What is said beside the line, for people. */
export function authorizeNotes(done: Authorized): string[] {
  const { client, fingerprint, installed, dryRun, unlisted } = done
  return [
    dryRun
      ? `nothing was changed; the rights of client ${client} would be in ${done.rightsFile}`
      : `rights of client ${client}, with key ${fingerprint}: ${done.rightsFile}`,
    installed === undefined
      ? 'put the line into authorized_keys of the user that the standby logs in as, or use --install'
      : `the line ${dryRun ? 'would be' : 'is'} in ${installed}`,
    ...unlisted.map(domain => `source.yaml does not list domain ${domain}: it is not exported`),
  ]
}
