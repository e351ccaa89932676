// A real sshd on loopback for one test: own keys, own configuration, and an ssh configuration for whoever connects, so that
// nothing of the machine's is read or written.

import { spawn, spawnSync, type ChildProcess } from 'node:child_process'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { connect, createServer, type AddressInfo } from 'node:net'
import { userInfo } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { standbySchema } from '../../client/config/schema.ts'
import { NO_USER, type User } from '../../client/source/user.ts'
import type { NamedSource } from '../../client/source/source.ts'
import { listProcesses } from '../lab/processes.ts'
import { temporary } from '../nbd/fake-server.ts'

interface TestLike {
  teardown(step: () => void): void
}

export type KeyType = 'ed25519' | 'ecdsa' | 'rsa'

export interface Sshd {
  readonly port: number
  readonly dir: string
  /** The public host key of a type, as known_hosts has it. */
  hostKey(type?: KeyType): string
  /** SIGKILLs the processes of its connections, or of one, counted from the oldest. @returns how many there were */
  killConnections(only?: number): number
  stop(): void
}

/** A folder for keys and configuration whose `ssh` is first on PATH, with the folder's `ssh_config` and no other. */
export function sshFolder(t: TestLike): string {
  const dir = temporary(t)
  const bin = path.join(dir, 'bin')
  mkdirSync(bin)
  writeFileSync(path.join(bin, 'ssh'), `#!/bin/sh\nexec /usr/bin/ssh -F ${dir}/ssh_config "$@"\n`, {
    mode: 0o755,
  })
  writeFileSync(
    path.join(dir, 'ssh_config'),
    'Host *\n' +
      `  UserKnownHostsFile ${dir}/known_hosts\n  GlobalKnownHostsFile none\n` +
      `  IdentityFile ${dir}/id\n  IdentityAgent none\n  HashKnownHosts no\n`,
  )
  makeKey(path.join(dir, 'id'))
  const before = process.env['PATH'] ?? ''
  process.env['PATH'] = `${bin}:${before}`
  t.teardown(() => (process.env['PATH'] = before))
  return dir
}

/** A key pair. @param passphrase empty for none */
export function makeKey(file: string, type: KeyType = 'ed25519', passphrase = ''): void {
  tool('ssh-keygen', ['-q', '-t', type, '-N', passphrase, '-C', path.basename(file), '-f', file])
}

/** Runs a tool to its end. @throws with its stderr */
export function tool(file: string, args: readonly string[], env: NodeJS.ProcessEnv = {}): string {
  const result = spawnSync(file, args, { encoding: 'utf8', env: { ...process.env, ...env } })
  if (result.status !== 0) throw new Error(`${file} ${args.join(' ')}: ${result.stderr}`)
  return result.stdout
}

/** A script that sshd runs whatever the client asks for; that is in $SSH_ORIGINAL_COMMAND. */
export function forcedCommand(dir: string, name: string, script: string): string {
  const file = path.join(dir, name)
  writeFileSync(file, `#!/bin/sh\n${script}\n`, { mode: 0o755 })
  return `restrict,command="${file}"`
}

export interface SshdOptions {
  /** What stands before the key in authorized_keys. */
  readonly allow: string
  readonly hostKeys?: readonly KeyType[]
  /** More lines of sshd_config. */
  readonly config?: readonly string[]
  /** The authorized key; the folder's own by default. */
  readonly key?: string
}

/** Starts an sshd that lets the folder's key in. @param name of its files in the folder */
export async function startSshd(
  t: TestLike,
  dir: string,
  { allow, hostKeys = ['ed25519'], config = [], key = path.join(dir, 'id') }: SshdOptions,
  name = 'sshd',
): Promise<Sshd> {
  const file = (what: string): string => path.join(dir, `${name}.${what}`)
  for (const type of hostKeys) makeKey(file(type), type)
  writeFileSync(file('authorized_keys'), `${allow} ${readFileSync(`${key}.pub`, 'utf8')}`)
  const port = await freePort()
  const lines = [
    ...[`Port ${port}`, 'ListenAddress 127.0.0.1', 'PidFile none', 'UsePAM no', 'StrictModes no'],
    ...hostKeys.map(type => `HostKey ${file(type)}`),
    ...[`AuthorizedKeysFile ${file('authorized_keys')}`, 'PermitRootLogin prohibit-password'],
    ...['PasswordAuthentication no', 'KbdInteractiveAuthentication no', 'UseDNS no'],
    // What the user's own shell runs at its start is not the test's, nor may it be killed there.
    `SetEnv HOME=${dir}`,
    ...config,
  ]
  writeFileSync(file('config'), lines.join('\n') + '\n')
  if (userInfo().uid === 0) mkdirSync('/run/sshd', { recursive: true })
  const child = spawn('/usr/sbin/sshd', ['-D', '-e', '-f', file('config')], {
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  const stop = (): void => {
    killConnections(child)
    child.kill('SIGKILL')
  }
  t.teardown(stop)
  process.once('exit', stop)
  child.once('exit', () => process.off('exit', stop))
  let said = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => (said += text))
  for (let tries = 0; !(await answers(port)); tries++) {
    if (child.exitCode !== null || tries > 500) throw new Error(`sshd did not start: ${said}`)
    await sleep(10)
  }
  return {
    port,
    dir,
    hostKey: (type = 'ed25519') =>
      readFileSync(`${file(type)}.pub`, 'utf8')
        .split(' ')
        .slice(0, 2)
        .join(' '),
    killConnections: only => killConnections(child, only),
    stop,
  }
}

/** Its connections are its children, and what those run. */
function killConnections(sshd: ChildProcess, only?: number): number {
  const all = listProcesses()
  const mine = all
    .filter(({ parent, zombie }) => parent === sshd.pid && !zombie)
    .sort((a, b) => Number(a.started) - Number(b.started) || a.pid - b.pid)
  for (const { pid } of only === undefined ? mine : mine.slice(only, only + 1)) {
    for (const below of all.filter(({ parent }) => parent === pid)) kill(below.pid)
    kill(pid)
  }
  return mine.length
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // It went by itself.
  }
}

async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  await new Promise(resolve => server.close(resolve))
  return port
}

function answers(port: number): Promise<boolean> {
  return new Promise(resolve => {
    const socket = connect(port, '127.0.0.1')
    socket
      .once('data', () => resolve(true))
      .once('error', () => resolve(false))
      .once('close', () => resolve(false))
      .once('data', () => socket.destroy())
  })
}

/** Writes the folder's known_hosts. */
export function knowHosts(dir: string, ...lines: readonly string[]): void {
  writeFileSync(path.join(dir, 'known_hosts'), lines.map(line => `${line}\n`).join(''))
}

/** A source at an sshd, as standby.yaml would have it. @param ssh keys of its `ssh` */
export function sourceAt(
  { port }: Pick<Sshd, 'port'>,
  ssh: Record<string, unknown> = {},
  user: User = NO_USER,
): NamedSource {
  const source = { transport: 'ssh', host: '127.0.0.1', ssh: { port, ...ssh } }
  const config = standbySchema.parse({ sources: { alpha: source } })
  const [alpha] = Object.values(config.sources)
  if (!alpha) throw new Error('no source')
  return { ...alpha, name: 'alpha', user }
}
