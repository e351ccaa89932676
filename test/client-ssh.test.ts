// The ssh transport against a real sshd: whom it trusts, how it logs in, and what becomes of its connections.

import t, { type Test } from 'tap'
import { spawn } from 'node:child_process'
import { chmodSync, existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { text } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'
import { NO_USER, type User } from '../client/source/user.ts'
import { fingerprint } from '../client/source/ssh/host-key.ts'
import { sshPool } from '../client/source/ssh/pool.ts'
import { parseOptions, sshHops } from '../client/source/ssh/settings.ts'
import type { NamedSource } from '../client/source/source.ts'
import { Failure } from '../shared/failures.ts'
import {
  forcedCommand,
  knowHosts,
  makeKey,
  sourceAt,
  sshFolder,
  startSshd,
  tool,
  type Sshd,
  type SshdOptions,
} from './client/sshd.ts'
import { requires } from './nbd/requires.ts'

const skip = requires('/usr/sbin/sshd', 'ssh', 'ssh-keygen')
const never = new AbortController().signal
/** Says back what was asked for. */
const ECHO = 'echo "asked: $SSH_ORIGINAL_COMMAND"; cat'

async function aHost(
  t: Test,
  options: Partial<SshdOptions> = {},
): Promise<{ dir: string; sshd: Sshd }> {
  const dir = sshFolder(t)
  const allow = forcedCommand(dir, 'forced', ECHO)
  return { dir, sshd: await startSshd(t, dir, { allow, ...options }) }
}

const hostOf = ({ port }: Sshd): string => `[127.0.0.1]:${port}`
const fingerprintOf = (hostKey: string): string => fingerprint({ key: hostKey.split(' ')[1] ?? '' })

/** Runs one command and closes. @returns what it said */
async function say(source: NamedSource, command = 'gate', signal = never): Promise<string> {
  await using pool = sshPool(source)
  const remote = await pool.exec(command, signal)
  remote.input.end()
  return await text(remote.output)
}

t.test(
  'a host that is known is connected to, and asked for exactly the command',
  { skip },
  async t => {
    const { dir, sshd } = await aHost(t)
    knowHosts(dir, `${hostOf(sshd)} ${sshd.hostKey()}`)
    t.equal(await say(sourceAt(sshd)), 'asked: gate\n')
    t.equal(await say(sourceAt(sshd), 'nbd mydomain/vda@aa'), 'asked: nbd mydomain/vda@aa\n')
    tool('ssh-keygen', ['-q', '-H', '-f', path.join(dir, 'known_hosts')])
    t.notMatch(readFileSync(path.join(dir, 'known_hosts'), 'utf8'), '127.0.0.1')
    t.equal(await say(sourceAt(sshd)), 'asked: gate\n', 'by a hashed name')
  },
)
