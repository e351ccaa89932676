// authorize: a client's rights into a file of their own, and its key into a line for sshd.

import { mkdir, realpath } from 'node:fs/promises'
import { homedir } from 'node:os'
import path from 'node:path'
import { Failure, toFailure } from '../../shared/failures.ts'
import type { SourceConfig } from '../config/schema.ts'
import { authorizedLine, forcedCommand, withLine } from '../clients/authorized-keys.ts'
import { openKeyFile, type KeyFile } from '../clients/key-file.ts'
import { programWords } from '../clients/program-words.ts'
import { readPublicKey } from '../clients/public-key.ts'
import {
  getsNarrower,
  lockClients,
  rightsText,
  writeRights,
  type RightsText,
} from '../clients/registry.ts'
import { checkClient, rightsFile } from '../clients/rights.ts'
import { endClient, renderEnded, type Ended } from '../serve/end-client.ts'

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
  /** Whether it had rights that it has no more; then what it had open is ended. */
  readonly narrowed: boolean
  /** What serve ended; undefined when nothing had to be, or serve does not run. */
  readonly ended: Ended
}

/** Where sshd looks for the keys of the user who runs this. */
export async function ownKeyFile(): Promise<string> {
  // On some hosts /root or /home is a link, which is the host's own and none to be warned of.
  const home = await realpath(homedir()).catch(() => homedir())
  return path.join(home, '.ssh', 'authorized_keys')
}

interface Where {
  readonly config: SourceConfig
  /** Undefined where that is the default. */
  readonly configFile: string | undefined
  /** The directory of the rights. */
  readonly clients: string
  readonly serveSocket: string
}

/**
 * @throws Failure USAGE, UNSAFE (the key is there already with other options, or a link is in the way), LOCKED; nothing is
 * changed then. SOURCE_UNREACHABLE when rights got narrower and serve does not answer: all is written then
 */
export async function authorize(
  where: Where,
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
  const file = options.file ?? (await ownKeyFile())
  const isOwn = options.file === undefined
  const change: Change = { client, text, line, ...(options.install && { keys: { file, isOwn } }) }
  const done = await (options.dryRun ? tryOut : carryOut)(where, change)
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
    ...done,
  }
}

interface Change {
  readonly client: string
  /** Of the file of rights. */
  readonly text: string
  readonly line: string
  /** Where the line goes, and whether that is where the user who runs this has keys. */
  readonly keys?: { readonly file: string; readonly isOwn: boolean }
}

async function carryOut(
  { clients, serveSocket }: Where,
  { client, text, line, keys }: Change,
): Promise<Pick<Authorized, 'narrowed' | 'ended'>> {
  const unlock = await lockClients(clients)
  try {
    if (keys?.isOwn === true) await mkdir(path.dirname(keys.file), { recursive: true, mode: 0o700 })
    await using opened = keys && (await openKeyFile(keys.file))
    const lines = keys && linesOf(opened, keys.file, client, line)
    const narrowed = await getsNarrower(clients, client, text)
    await writeRights(clients, client, text)
    const ended = narrowed
      ? await endClient(serveSocket, client, 'rights').catch(toFailure)
      : undefined
    if (lines !== undefined) await opened?.write(lines)
    if (ended instanceof Failure) throw ended
    return { narrowed, ended }
  } finally {
    unlock()
  }
}

/** Finds out whether all of it could be done. */
async function tryOut(
  { clients }: Where,
  { client, text, line, keys }: Change,
): Promise<Pick<Authorized, 'narrowed' | 'ended'>> {
  if (keys) {
    await using opened = await openKeyFile(keys.file)
    if (opened || !keys.isOwn) linesOf(opened, keys.file, client, line)
  }
  return { narrowed: await getsNarrower(clients, client, text), ended: undefined }
}

/** The new text of the file. @throws Failure USAGE, UNSAFE */
function linesOf(opened: KeyFile | undefined, file: string, client: string, line: string): string {
  if (opened) return withLine(opened.text, client, line)
  throw new Failure('USAGE', `cannot use ${file}: there is no ${path.dirname(file)}`)
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
  const { client, fingerprint, installed, dryRun, unlisted, narrowed, ended } = done
  const narrower = dryRun
    ? 'it would have less than before: what it has open would be ended'
    : `it has less than before: ${renderEnded(ended)}`
  return [
    dryRun
      ? `nothing was changed; the rights of client ${client} would be in ${done.rightsFile}`
      : `rights of client ${client}, with key ${fingerprint}: ${done.rightsFile}`,
    ...(narrowed ? [narrower] : []),
    installed === undefined
      ? 'put the line into authorized_keys of the user that the standby logs in as, or use --install'
      : `the line ${dryRun ? 'would be' : 'is'} in ${installed}`,
    ...unlisted.map(domain => `source.yaml does not list domain ${domain}: it is not exported`),
  ]
}
