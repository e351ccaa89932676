// What we log in with: keys of the agent and key files, in the order in which they are offered.

import { readFile, stat } from 'node:fs/promises'
import ssh2, { type AnyAuthMethod, type ParsedKey } from 'ssh2'
import { Failure, toFailure } from '../../../shared/failures.ts'
import type { User } from '../user.ts'
import { Agent, OneKey, type AgentKey, type Agents } from './agent.ts'
import type { Hop } from './settings.ts'

/** A key that can be offered. */
export interface Candidate {
  /** For messages, e.g. `key file /root/.ssh/id_ed25519`. */
  readonly what: string
  readonly method: AnyAuthMethod
}

export interface Keys {
  readonly candidates: readonly Candidate[]
  /** Encrypted key files that the agent does not have. */
  readonly locked: readonly string[]
  /** Why something that was meant to be offered is not. */
  readonly notes: readonly string[]
  /** Whom the candidates of the agent are signed by; to be hung up on after the login. */
  readonly agent: Agent | undefined
}

/** Key files that were decrypted, so that nobody is asked twice. File -> key. */
export type Unlocked = Map<string, ParsedKey>

/** ssh looks for these by itself, so nobody misses one. */
const BY_DEFAULT = /\/\.ssh\/id_(rsa|dsa|ecdsa|ecdsa_sk|ed25519|ed25519_sk|xmss)$/

/**
 * The keys to log in to a host with: first what its identity files name, be it in the agent or in the file, then what else
 * the agent has.
 * @throws Failure UNSAFE for a key file that others can read
 */
export async function findKeys(hop: Hop, unlocked: Unlocked, agents: Agents): Promise<Keys> {
  const notes: string[] = []
  const locked: string[] = []
  const candidates: Candidate[] = []
  const inAgent = await agentKeys(hop, agents, notes)
  const agent = hop.agent === undefined ? undefined : new Agent(hop.agent)
  const used = new Set<AgentKey>()
  const offer = (key: AgentKey): void => {
    if (!agent || used.has(key)) return
    used.add(key)
    candidates.push({
      what: `agent key ${key.comment}`,
      method: { type: 'agent', username: hop.user, agent: new OneKey(agent, key.parsed) },
    })
  }

  for (const file of hop.identities) {
    const named = await publicKey(file)
    const agentKey = inAgent.find(({ key }) => key === named)
    const key = agentKey ? undefined : (unlocked.get(file) ?? (await privateKey(file)))
    if (agentKey) offer(agentKey)
    else if (key === 'encrypted') locked.push(file)
    else if (typeof key === 'string') notes.push(key)
    else if (key)
      candidates.push({
        what: `key file ${file}`,
        method: { type: 'publickey', username: hop.user, key },
      })
    else if (!BY_DEFAULT.test(file)) notes.push(`there is no ${file}`)
  }
  if (!hop.identitiesOnly) inAgent.forEach(offer)
  return { candidates, locked, notes, agent }
}

async function agentKeys(
  { agent }: Hop,
  agents: Agents,
  notes: string[],
): Promise<readonly AgentKey[]> {
  if (agent === undefined) return []
  try {
    return await agents.keys(agent)
  } catch (error) {
    notes.push(toFailure(error).message)
    return []
  }
}

/** The public key beside an identity file, or in it; base64. */
async function publicKey(file: string): Promise<string | undefined> {
  for (const one of [`${file}.pub`, file]) {
    const text = await readFile(one, 'utf8').catch(() => '')
    const match = /^(?:ssh|ecdsa|sk)-\S+ (\S+)/.exec(text)
    if (match) return match[1]
  }
  return undefined
}

/**
 * @returns undefined when there is no such file, `encrypted`, or a sentence why it cannot be used
 * @throws Failure UNSAFE
 */
async function privateKey(file: string): Promise<ParsedKey | string | undefined> {
  let text: Buffer
  try {
    const { mode } = await stat(file)
    text = await readFile(file)
    if ((mode & 0o077) !== 0 && !/^(ssh|ecdsa|sk)-/.test(text.toString('latin1', 0, 10)))
      throw new Failure('UNSAFE', `others than its owner can get at the private key ${file}`, {
        remedy: `chmod 600 ${file}; if it may have been read, make a new key`,
      })
  } catch (error) {
    if (error instanceof Failure) throw error
    const { code, message } = error as NodeJS.ErrnoException
    return code === 'ENOENT' ? undefined : `${file} cannot be read: ${message}`
  }
  const key = ssh2.utils.parseKey(text)
  if (!(key instanceof Error))
    return key.isPrivateKey() ? key : `the agent does not have the key of ${file}`
  return /encrypted/i.test(key.message) ? 'encrypted' : `${file} cannot be used: ${key.message}`
}

/**
 * Asks for the passphrases of encrypted key files. @returns whether one of them can be used now
 * @throws the signal's reason
 */
export async function unlock(
  files: readonly string[],
  unlocked: Unlocked,
  { ask }: User,
  signal: AbortSignal,
): Promise<boolean> {
  let any = false
  if (!ask) return any
  for (const file of files) {
    const passphrase = await ask(`Passphrase for ${file}: `, signal)
    if (passphrase === '') continue
    const key = ssh2.utils.parseKey(await readFile(file), passphrase)
    if (key instanceof Error) continue
    unlocked.set(file, key)
    any = true
  }
  return any
}
