// An ssh-agent's keys, each to be offered by itself, so that the order is ours and a refusal can name what was tried.

import ssh2 from 'ssh2'
import type {
  BaseAgent,
  IdentityCallback,
  OpenSSHAgent,
  ParsedKey,
  SignCallback,
  SigningRequestOptions,
} from 'ssh2'
import { Failure } from '../../../shared/failures.ts'

export interface AgentKey {
  readonly comment: string
  /** Base64 of its public part's wire form. */
  readonly key: string
  /** An agent that has this key alone. */
  readonly agent: BaseAgent
}

/** An agent that answers neither yes nor no. */
const ANSWER_MS = 5_000

/** @param socket the agent's. @throws Failure SOURCE_UNREACHABLE when it does not answer */
export async function agentKeys(socket: string): Promise<AgentKey[]> {
  const inner = new ssh2.OpenSSHAgent(socket)
  const keys = await new Promise<ParsedKey[]>((resolve, reject) => {
    const give = (why: string): void =>
      reject(new Failure('SOURCE_UNREACHABLE', `the ssh agent at ${socket} ${why}`))
    const timer = setTimeout(() => give('does not answer'), ANSWER_MS)
    inner.getIdentities((error, found = []) => {
      clearTimeout(timer)
      if (error) give(`cannot be asked: ${error.message}`)
      else resolve(found as ParsedKey[])
    })
  })
  return keys.map(key => ({
    comment: key.comment,
    key: key.getPublicSSH().toString('base64'),
    agent: new OneKey(inner, key),
  }))
}

/** ssh2 takes an agent for one only if it is of its class. */
class OneKey extends ssh2.BaseAgent {
  readonly #inner: OpenSSHAgent
  readonly #key: ParsedKey

  constructor(inner: OpenSSHAgent, key: ParsedKey) {
    super()
    this.#inner = inner
    this.#key = key
  }

  getIdentities(callback: IdentityCallback): void {
    callback(undefined, [this.#key])
  }

  sign(
    _key: unknown,
    data: Buffer,
    options: SigningRequestOptions | SignCallback,
    callback?: SignCallback,
  ): void {
    if (typeof options === 'function') this.#inner.sign(this.#key, data, options)
    else this.#inner.sign(this.#key, data, options, callback)
  }
}
