// An ssh-agent's keys, each to be offered by itself, so that the order is ours and a refusal can name what was tried. An
// agent that does not answer must not keep us: whoever asks one can hang up.

import { connect, type Socket } from 'node:net'
import ssh2 from 'ssh2'
import type {
  GetStreamCallback,
  IdentityCallback,
  ParsedKey,
  SignCallback,
  SigningRequestOptions,
} from 'ssh2'
import { Failure } from '../../../shared/failures.ts'

export interface AgentKey {
  readonly comment: string
  /** Base64 of its public part's wire form. */
  readonly key: string
  readonly parsed: ParsedKey
}

/** The agents that the connections of one command ask for their keys, each once. */
export interface Agents {
  /** @param socket an agent's. @throws Failure SOURCE_UNREACHABLE when it does not answer, also each time after */
  keys(socket: string): Promise<readonly AgentKey[]>
  /** Waits for no answer any more. */
  close(): void
}

/** An agent that answers neither yes nor no. */
const ANSWER_MS = 5_000

export function agents(): Agents {
  const asked = new Map<string, Promise<readonly AgentKey[]>>()
  const open = new Set<Agent>()

  async function ask(socket: string): Promise<readonly AgentKey[]> {
    const agent = new Agent(socket)
    open.add(agent)
    try {
      return await keysOf(agent, socket)
    } finally {
      agent.hangUp()
      open.delete(agent)
    }
  }

  return {
    keys(socket) {
      let answer = asked.get(socket)
      if (!answer) asked.set(socket, (answer = ask(socket)))
      return answer
    },
    close: () => open.forEach(agent => agent.hangUp()),
  }
}

async function keysOf(agent: Agent, socket: string): Promise<readonly AgentKey[]> {
  const keys = await new Promise<ParsedKey[]>((resolve, reject) => {
    const give = (why: string): void =>
      reject(new Failure('SOURCE_UNREACHABLE', `the ssh agent at ${socket} ${why}`))
    const timer = setTimeout(() => give('does not answer'), ANSWER_MS)
    agent.getIdentities((error, found = []) => {
      clearTimeout(timer)
      if (error) give(`cannot be asked: ${error.message}`)
      else resolve(found as ParsedKey[])
    })
  })
  return keys.map(key => ({
    comment: key.comment,
    key: key.getPublicSSH().toString('base64'),
    parsed: key,
  }))
}

/** One that can be hung up on: ssh2 itself waits for an answer for ever, and so would the process. */
export class Agent extends ssh2.OpenSSHAgent {
  readonly #path: string
  readonly #open = new Set<Socket>()

  constructor(path: string) {
    super(path)
    this.#path = path
  }

  override getStream(callback: GetStreamCallback): void {
    const socket = connect(this.#path)
    this.#open.add(socket)
    let failed: Error | undefined
    let given = false
    const give: GetStreamCallback = (error, stream) => {
      if (!given) callback(error, stream)
      given = true
    }
    socket.once('connect', () => give(null, socket))
    socket.on('error', error => (failed = error))
    socket.once('close', () => {
      this.#open.delete(socket)
      give(failed ?? new Error('it closed the connection'))
    })
  }

  /** Whether an answer of it is waited for. */
  isAsked(): boolean {
    return this.#open.size > 0
  }

  /** Whoever waits for an answer is told that there is none. */
  hangUp(): void {
    for (const socket of this.#open) socket.destroy()
  }
}

/** An agent that has one key. ssh2 takes an agent for one only if it is of its class. */
export class OneKey extends ssh2.BaseAgent {
  readonly #agent: Agent
  readonly #key: ParsedKey

  constructor(agent: Agent, key: ParsedKey) {
    super()
    this.#agent = agent
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
    if (typeof options === 'function') this.#agent.sign(this.#key, data, options)
    else this.#agent.sign(this.#key, data, options, callback)
  }
}
