// known_hosts files: which keys they have for a host, by ssh-keygen, and how a new one is added.

import { createHmac, randomBytes } from 'node:crypto'
import { access, mkdir, open } from 'node:fs/promises'
import path from 'node:path'
import { Failure } from '../../../shared/failures.ts'
import { appendDurably } from '../../../shared/host/durable.ts'
import { reasonOf, run } from '../../../shared/host/run.ts'
import type { Hop } from './settings.ts'

/** A line of a known_hosts file that is about a host. */
export interface KnownKey {
  readonly file: string
  /** Counted from 1. */
  readonly line: number
  /** `revoked`, or the host's certificate authority. */
  readonly marker: 'revoked' | 'authority' | undefined
  /** e.g. `ssh-ed25519`. */
  readonly type: string
  /** The key in SSH's wire form, base64. */
  readonly key: string
}

/** All that the known_hosts files say of a host, hashed names and patterns too. @throws Failure UNSAFE for one that cannot be read */
export async function knownKeys(hop: Hop, signal?: AbortSignal): Promise<KnownKey[]> {
  const known: KnownKey[] = []
  for (const file of hop.knownHosts) {
    const there = await access(file).then(
      () => true,
      (error: unknown) => (error as NodeJS.ErrnoException).code !== 'ENOENT',
    )
    if (!there) continue
    const result = await run('ssh-keygen', ['-F', hop.hostKeyName, '-f', file], { signal })
    // 1: the host is not in it.
    if (result.exitCode === 1 && result.stderr.trim() === '') continue
    if (result.exitCode !== 0)
      throw new Failure('UNSAFE', `cannot look up host keys in ${file}: ${reasonOf(result)}`, {
        remedy: `make ${file} readable, or have ssh.knownHosts in standby.yaml name another file`,
      })
    known.push(...parseFound(file, result.stdout))
  }
  return known
}

/** What `ssh-keygen -F` prints: a comment with the line's number and marker, then the line. */
export function parseFound(file: string, text: string): KnownKey[] {
  const known: KnownKey[] = []
  let line = 0
  let marker: KnownKey['marker']
  for (const row of text.split('\n')) {
    const found = /^# Host .* found: line (\d+) ?(REVOKED|CA)?\s*$/.exec(row)
    if (found) {
      line = Number(found[1])
      marker = found[2] === 'REVOKED' ? 'revoked' : found[2] === 'CA' ? 'authority' : undefined
      continue
    }
    const [type, key] = row.split(/\s+/).slice(marker === undefined ? 1 : 2)
    if (type !== undefined && key !== undefined) known.push({ file, line, marker, type, key })
  }
  return known
}

/**
 * Adds a host's key to the first known_hosts file, durably. @returns the file
 * @throws Failure UNSAFE when there is no file to keep it in; STANDBY_IO
 */
export async function addKnownKey(hop: Hop, type: string, key: string): Promise<string> {
  const [file] = hop.knownHosts
  if (file === undefined || file === '/dev/null')
    throw new Failure('UNSAFE', `there is no known_hosts file to keep the key of ${hop.name} in`, {
      remedy: 'have ssh.knownHosts in standby.yaml name one',
    })
  try {
    await mkdir(path.dirname(file), { recursive: true, mode: 0o700 })
    const name = hop.hashNames ? hashed(hop.hostKeyName) : hop.hostKeyName
    await appendDurably(file, `${(await endsMidLine(file)) ? '\n' : ''}${name} ${type} ${key}\n`)
    return file
  } catch (error) {
    throw new Failure(
      'STANDBY_IO',
      `cannot add the host key of ${hop.name} to ${file}: ${String(error)}`,
      {
        cause: error,
      },
    )
  }
}

/** As HashKnownHosts writes it: salt and HMAC-SHA1 of the name. */
function hashed(name: string): string {
  const salt = randomBytes(20)
  const digest = createHmac('sha1', salt).update(name).digest('base64')
  return `|1|${salt.toString('base64')}|${digest}`
}

/** A last line without an end would swallow what is appended. */
async function endsMidLine(file: string): Promise<boolean> {
  let handle
  try {
    handle = await open(file, 'r')
  } catch {
    return false
  }
  try {
    const { size } = await handle.stat()
    if (size === 0) return false
    const { buffer } = await handle.read(Buffer.alloc(1), 0, 1, size - 1)
    return buffer[0] !== 10
  } finally {
    await handle.close()
  }
}
