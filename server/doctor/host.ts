// What the host must have: Node, the programs that serve runs, and its directories.

import { access, constants, readdir, readFile, realpath, stat, statfs } from 'node:fs/promises'
import path from 'node:path'
import { reasonOf, run } from '../../shared/host/run.ts'
import { fail, pass, skip, warn, type Check, type Outcome } from './finding.ts'
import { isOlder, judgeNbdServer, parseVersion } from './nbd-server.ts'

const NODE_LEAST = [20, 19]
const VERSION_MS = 10_000
/** statfs(2) types of tmpfs and ramfs. */
const IN_MEMORY = [0x01021994, 0x858458f6]

export interface HostFacts {
  readonly nodeVersion: string
  /** Effective user. */
  readonly uid: number
  /** Whether systemd is this host's init (sd_booted). */
  readonly systemd: boolean
  /** Directory of `nbd-server`'s own configuration, for the classic daemon. */
  readonly nbdServerConfig: string
}

export async function readHostFacts(): Promise<HostFacts> {
  return {
    nodeVersion: process.versions.node,
    uid: process.geteuid?.() ?? 0,
    systemd: await exists('/run/systemd/system'),
    nbdServerConfig: '/etc/nbd-server',
  }
}

export async function exists(file: string): Promise<boolean> {
  return (await stat(file).catch(() => undefined)) !== undefined
}

export function judgeNode(version: string): Outcome {
  const parsed = parseVersion(version)
  if (parsed && !isOlder(parsed, NODE_LEAST)) return pass(version)
  return fail(
    `${version} is too old`,
    `install Node ${NODE_LEAST.join('.')} or newer: the README's section Install has two ways`,
  )
}

/** Programs that serve runs; all of them answer `--version`. */
const PROGRAMS: readonly { readonly name: string; readonly debian: string }[] = [
  { name: 'virsh', debian: 'libvirt-clients' },
  { name: 'qemu-img', debian: 'qemu-utils' },
  { name: 'flock', debian: 'util-linux' },
  { name: 'blockdev', debian: 'util-linux' },
  { name: 'setpriv', debian: 'util-linux' },
  { name: 'prlimit', debian: 'util-linux' },
  { name: 'ss', debian: 'iproute2' },
]

async function lookAtProgram(name: string, debian: string): Promise<Outcome> {
  const result = await run(name, ['--version'], { timeoutMs: VERSION_MS })
  if (result.exitCode === 0) {
    const version = parseVersion(result.stdout)
    return pass(version ? `${name} ${version.join('.')}` : name)
  }
  const found =
    result.exitCode === 127 ? `${name} is not installed` : `${name}: ${reasonOf(result)}`
  return fail(found, `apt-get install ${debian}`)
}

async function lookAtNbdServer({ nbdServerConfig }: HostFacts): Promise<Outcome> {
  const result = await run('nbd-server', ['-V'], { timeoutMs: VERSION_MS })
  if (result.exitCode === 127)
    return fail('nbd-server is not installed', 'apt-get install nbd-server')
  return judgeNbdServer(
    result.stdout + result.stderr,
    await glibVersion(),
    await hasOurHooks(nbdServerConfig),
  )
}

/** Of the GLib that nbd-server is linked with, from its file's name: libglib-2.0.so.0.7400.6 is 2.74.6. */
async function glibVersion(): Promise<readonly number[] | undefined> {
  const which = await run('sh', ['-c', 'ldd "$(command -v nbd-server)"'], { timeoutMs: VERSION_MS })
  const library = /libglib-2\.0\.so\.0 => (\S+)/.exec(which.stdout)?.[1]
  const file = library === undefined ? '' : await realpath(library).catch(() => '')
  const [, number, micro] = /\.so\.0\.(\d+)00\.(\d+)$/.exec(file) ?? []
  return number === undefined ? undefined : [2, Number(number), Number(micro)]
}

/** Whether the classic daemon's configuration has hooks of ours. */
async function hasOurHooks(directory: string): Promise<boolean> {
  const included = await readdir(path.join(directory, 'conf.d')).catch(() => [])
  const files = ['config', ...included.map(name => path.join('conf.d', name))]
  const texts = await Promise.all(
    files.map(name => readFile(path.join(directory, name), 'utf8').catch(() => '')),
  )
  return texts.some(text => /^prerun *=.*'hook' 'begin'/m.test(text))
}

export const HOST_CHECKS: readonly Check<HostFacts>[] = [
  { check: 'node', look: ({ nodeVersion }) => judgeNode(nodeVersion) },
  {
    check: 'user',
    look: ({ uid }) =>
      uid === 0
        ? pass('root')
        : fail(`user ${uid} is not root: what follows may be wrong`, 'run it as root'),
  },
  {
    check: 'programs',
    look: () => Promise.all(PROGRAMS.map(({ name, debian }) => lookAtProgram(name, debian))),
  },
  { check: 'nbd-server', look: lookAtNbdServer },
  {
    check: 'systemd',
    look: ({ systemd }) =>
      systemd ? lookAtProgram('systemd-notify', 'systemd') : skip('this host does not run systemd'),
  },
]

/** What makes a directory fit for its use. @param inMemory whether it may be lost at a reboot */
export async function lookAtDirectory(directory: string, inMemory: boolean): Promise<Outcome> {
  const found = await stat(directory).catch((error: unknown) => error as NodeJS.ErrnoException)
  if (found instanceof Error)
    return found.code === 'ENOENT'
      ? pass(`${directory} is not there yet: serve makes it`)
      : fail(`${directory}: ${found.code ?? found.message}`, `ls -ld ${directory}`)
  if (!found.isDirectory()) return fail(`${directory} is no directory`, `ls -ld ${directory}`)
  if (!inMemory && (await isInMemory(directory)))
    return fail(
      `${directory} is in memory: a reboot would lose the journals, and with them where the guests' data is`,
      'set stateDir to a directory on disk',
    )
  try {
    await access(directory, constants.R_OK | constants.W_OK | constants.X_OK)
  } catch (error) {
    return fail(
      `${directory} cannot be written: ${(error as NodeJS.ErrnoException).code ?? String(error)}`,
      `is its file system mounted read-only? findmnt -T ${directory}`,
    )
  }
  const mode = (found.mode & 0o7777).toString(8).padStart(4, '0')
  const owner = `owner ${found.uid}:${found.gid}, mode ${mode}`
  if (found.uid !== 0)
    return warn(
      `${directory}: ${owner}: its owner can change what serve does`,
      `chown root: ${directory}`,
    )
  if ((found.mode & 0o022) !== 0)
    return warn(
      `${directory}: ${owner}: others can change what serve does`,
      `chmod go-w ${directory}`,
    )
  return pass(`${directory}, ${owner}`)
}

export async function isInMemory(directory: string): Promise<boolean> {
  return IN_MEMORY.includes((await statfs(directory)).type)
}
