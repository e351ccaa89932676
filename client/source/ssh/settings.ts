// Where ssh would connect to and as whom: what `ssh -G` makes of the user's configuration, for every hop on the way.

import { homedir, userInfo } from 'node:os'
import path from 'node:path'
import { Failure } from '../../../shared/failures.ts'
import { reasonOf, run } from '../../../shared/host/run.ts'
import type { NamedSource } from '../source.ts'

/** `ssh -G` may ask name servers, or run a `Match exec`. */
const RESOLVE_MS = 10_000
/** Jumps of jumps of jumps; more is a loop. */
const MAX_HOPS = 8

/** One host to log in to. */
export interface Hop {
  /** As the user calls it. */
  readonly name: string
  readonly host: string
  readonly port: number
  readonly user: string
  /** 4 or 6 when only that may be used; 0 for any. */
  readonly family: 0 | 4 | 6
  /** Private key files, in order; they need not exist. */
  readonly identities: readonly string[]
  /** Whether only keys of `identities` may be offered. */
  readonly identitiesOnly: boolean
  /** The agent's socket. */
  readonly agent: string | undefined
  /** What known_hosts calls it: `host`, `[host]:port`, or HostKeyAlias. */
  readonly hostKeyName: string
  /** known_hosts files; a new key goes into the first one. */
  readonly knownHosts: readonly string[]
  /** Whether what can be compressed is: worth it on lines that are slower than a core compresses. */
  readonly compresses: boolean
  /** Whether names are hashed when they are written there. */
  readonly hashNames: boolean
  /** The only host key that is accepted, `SHA256:...`. */
  readonly pinned: string | undefined
  /** Whether standby.yaml may pin its key: the source, not a jump host. */
  readonly pinnable: boolean
}

type Options = ReadonlyMap<string, readonly string[]>

/**
 * The hops to a source, the source last. What standby.yaml says under `ssh` is for the source alone, besides `knownHosts`;
 * jump hosts are as the user's ssh configuration has them.
 * @throws Failure USAGE for settings that ssh does not take or that this program cannot follow
 */
export async function sshHops(source: NamedSource, signal?: AbortSignal): Promise<Hop[]> {
  const { user, port, identity, options = [], hostKey, knownHosts } = source.ssh ?? {}
  const args = [
    ...options.flatMap(option => ['-o', option]),
    ...(port === undefined ? [] : ['-p', String(port)]),
    ...(user === undefined ? [] : ['-l', user]),
    ...(identity === undefined ? [] : ['-i', identity]),
  ]
  const hops: Hop[] = []
  let asked = 0
  await add(source.host ?? '', args, true)
  return hops.map((hop, at) =>
    at === hops.length - 1 ? { ...hop, pinned: hostKey, pinnable: true } : hop,
  )

  async function add(name: string, args: readonly string[], mayJump: boolean): Promise<void> {
    if (++asked > MAX_HOPS)
      throw new Failure(
        'USAGE',
        `ssh reaches ${source.host ?? ''} over more than ${MAX_HOPS} hosts`,
      )
    const resolved = await askSsh(name, args, signal)
    const jumps = mayJump ? jumpsOf(resolved, name) : []
    // As `ssh -J first,second`: only the first one's own ProxyJump counts.
    for (const [at, jump] of jumps.entries()) {
      const { name: host, args } = jumpHost(jump)
      await add(host, args, at === 0)
    }
    hops.push(hopOf(name, resolved, knownHosts))
  }
}

async function askSsh(
  name: string,
  args: readonly string[],
  signal: AbortSignal | undefined,
): Promise<Options> {
  const result = await run('ssh', ['-G', ...args, '--', name], { timeoutMs: RESOLVE_MS, signal })
  if (result.exitCode === 127)
    throw new Failure('USAGE', 'the program ssh is needed to read the ssh configuration', {
      remedy: 'install openssh-client',
    })
  if (result.exitCode !== 0)
    throw new Failure('USAGE', `ssh -G ${name}: ${reasonOf(result)}`, {
      remedy: 'set right the ssh configuration, or ssh.options in standby.yaml',
    })
  return parseOptions(result.stdout)
}

/** The lines of `ssh -G`: a key in lower case, a space, the value; some keys come more than once. */
export function parseOptions(text: string): Options {
  const options = new Map<string, string[]>()
  for (const line of text.split('\n')) {
    const at = line.indexOf(' ')
    if (at === -1) continue
    const key = line.slice(0, at)
    options.set(key, [...(options.get(key) ?? []), line.slice(at + 1)])
  }
  return options
}

const last = (options: Options, key: string): string | undefined => options.get(key)?.at(-1)

/** @throws Failure USAGE for a ProxyCommand */
function jumpsOf(options: Options, name: string): string[] {
  const command = last(options, 'proxycommand')
  if (command !== undefined && command !== 'none')
    throw new Failure('USAGE', `ssh reaches ${name} by a ProxyCommand, which cannot be used here`, {
      remedy: `use ProxyJump for ${name}, or set ssh.options: ['ProxyCommand=none'] in standby.yaml`,
    })
  const jump = last(options, 'proxyjump')
  return jump === undefined || jump === 'none' ? [] : jump.split(',')
}

/** `[user@]host[:port]` or an ssh URI. @throws Failure USAGE */
function jumpHost(jump: string): { name: string; args: string[] } {
  const match =
    /^(?:ssh:\/\/)?(?:(?<user>[^@\s]+)@)?(?:\[(?<v6>[^\]\s]+)\]|(?<host>[^:@[\]\s]+))(?::(?<port>\d{1,5}))?$/.exec(
      jump,
    )
  const { user, v6, host = v6, port } = match?.groups ?? {}
  if (host === undefined || host.startsWith('-') || user?.startsWith('-') === true)
    throw new Failure('USAGE', `ProxyJump ${JSON.stringify(jump)} is not [user@]host[:port]`)
  const args = [
    ...(user === undefined ? [] : ['-l', user]),
    ...(port === undefined ? [] : ['-p', port]),
  ]
  return { name: host, args }
}

function hopOf(name: string, options: Options, ours: string | undefined): Hop {
  const host = last(options, 'hostname') ?? name
  const port = Number(last(options, 'port') ?? 22)
  const user = last(options, 'user') ?? userInfo().username
  const alias = last(options, 'hostkeyalias')
  const names = { name, host, port, user, alias }
  if ((last(options, 'revokedhostkeys') ?? 'none') !== 'none')
    throw new Failure('USAGE', `ssh has RevokedHostKeys for ${name}, which cannot be read here`, {
      remedy: 'name revoked keys in known_hosts, as lines that begin with @revoked',
    })
  const files = (key: string): string[] =>
    (last(options, key) ?? '')
      .split(' ')
      .filter(file => file !== '' && file !== 'none')
      .map(file => expand(file, names))
  const family = last(options, 'addressfamily')
  return {
    ...{ name, host, port, user },
    family: family === 'inet' ? 4 : family === 'inet6' ? 6 : 0,
    identities: (options.get('identityfile') ?? [])
      .filter(file => file !== 'none')
      .map(file => expand(file, names)),
    identitiesOnly: last(options, 'identitiesonly') === 'yes',
    agent: agentOf(last(options, 'identityagent'), names),
    hostKeyName: alias ?? (port === 22 ? host : `[${host}]:${port}`),
    knownHosts:
      ours === undefined
        ? [...files('userknownhostsfile'), ...files('globalknownhostsfile')]
        : [ours],
    compresses: last(options, 'compression') === 'yes',
    hashNames: last(options, 'hashknownhosts') === 'yes',
    pinned: undefined,
    pinnable: false,
  }
}

function agentOf(given: string | undefined, names: Names): string | undefined {
  if (given === 'none') return undefined
  const variable =
    given === undefined || given === 'SSH_AUTH_SOCK'
      ? 'SSH_AUTH_SOCK'
      : /^\$(\w+)$/.exec(given)?.[1]
  const socket = variable === undefined ? expand(given ?? '', names) : process.env[variable]
  return socket === '' ? undefined : socket
}

interface Names {
  readonly name: string
  readonly host: string
  readonly port: number
  readonly user: string
  readonly alias: string | undefined
}

/** `~` and the %-tokens of ssh_config(5) that name a path. @throws Failure USAGE for another token */
function expand(text: string, { name, host, port, user, alias }: Names): string {
  const here = userInfo()
  const tokens: Readonly<Record<string, string>> = {
    ...{ '%': '%', d: homedir(), h: host, n: name, p: String(port), r: user, u: here.username },
    ...{ i: String(here.uid), k: alias ?? name },
  }
  const whole = text.replace(/%(.)/g, (_, token: string) => {
    const value = Object.hasOwn(tokens, token) ? tokens[token] : undefined
    if (value === undefined)
      throw new Failure('USAGE', `ssh names ${text} for ${name}: %${token} is not understood here`)
    return value
  })
  return whole === '~' || whole.startsWith('~/') ? path.join(homedir(), whole.slice(1)) : whole
}
