// One host of the lab: its file system, its namespaces and what runs in them from the start.

import { spawn } from 'node:child_process'
import { closeSync, openSync } from 'node:fs'
import { mkdir, readFile, rm, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { execa } from 'execa'
import { Failure } from '../../shared/failures.ts'
import { inHost } from './enter.ts'
import { childEnvironment } from './environment.ts'
import {
  hostDirectory,
  imageOf,
  LOG,
  markOf,
  namespaceOf,
  script,
  type HostName,
  type Store,
} from './names.ts'
import { listProcesses, namespaceInode, signal, waitFor } from './processes.ts'
import { releasedLoops } from './leftovers.ts'

const GIB = 1024 ** 3

/** Makes the host's file system, sparse: what /var/lib will be. */
export async function makeFileSystem(host: HostName, store: Store): Promise<void> {
  await mkdir(hostDirectory(host), { recursive: true })
  await writeFile(imageOf(host), '')
  await truncate(imageOf(host), (host === 'source' ? 12 : 16) * GIB)
  const force = store === 'xfs' ? '-f' : '-F'
  await execa(`mkfs.${store}`, ['-q', force, imageOf(host)])
}

/** Switches a host on: namespaces, mounts, process 1. It has no services yet. */
export async function switchOn(host: HostName): Promise<void> {
  const log = openSync(LOG, 'a')
  const init = spawn(
    'setpriv',
    // The host must not outlive the process that owns it, whatever happened to that.
    [
      ...['--pdeathsig', 'KILL', '--'],
      ...['nsenter', `--net=/run/netns/${namespaceOf(host)}`, '--'],
      ...['unshare', '--fork', '--kill-child', '--pid', '--mount', '--uts', '--'],
      ...['sh', script('host-init.sh'), host, imageOf(host)],
    ],
    {
      stdio: ['ignore', 'pipe', log],
      env: { ...childEnvironment(), NBD_CLONE_LAB: markOf(host) },
      cwd: '/',
    },
  )
  closeSync(log)
  const { stdout } = init
  const pid = stdout ? await firstLine(stdout) : undefined
  stdout?.destroy()
  if (pid === undefined) throw new Failure('INTERNAL', `host ${host} did not come up; see ${LOG}`)
  await writeFile(join(hostDirectory(host), 'init'), `${pid}\n`)
}

async function firstLine(stream: NodeJS.ReadableStream): Promise<string | undefined> {
  for await (const line of createInterface(stream)) return line
  return undefined
}

/** Starts what a host always runs. */
export async function startServices(host: HostName): Promise<void> {
  for (const command of [['/usr/sbin/sshd'], ['virtlogd', '-d'], ['libvirtd', '-d']])
    await inHost(host, command)
}

/** A path on a host as the machine sees it, for reading images from outside. Absolute symlinks do not work there. */
export async function pathInHost(host: HostName, path: string): Promise<string> {
  const init = await readFile(join(hostDirectory(host), 'init'), 'utf8')
  return `/proc/${init.trim()}/root${path}`
}

/** Whether anything runs on the host. */
export function isOn(host: HostName): boolean {
  return hostProcesses(host).length > 0
}

function hostProcesses(host: HostName): number[] {
  const namespace = namespaceInode(`/run/netns/${namespaceOf(host)}`)
  // Without its namespace there is no host, and no process may be taken for one of its own.
  if (namespace === undefined) return []
  return listProcesses()
    .filter(each => !each.zombie && namespaceInode(`/proc/${each.pid}/ns/net`) === namespace)
    .map(each => each.pid)
}

/**
 * Takes the host's power away: what was not synced to its file system is gone, everything that ran there is dead.
 * The network link stays plugged in.
 */
export async function powerCut(host: HostName): Promise<void> {
  if (!isOn(host)) throw new Failure('UNSAFE', `host ${host} is off already`)
  await inHost(host, ['xfs_io', '-x', '-c', 'shutdown', '/var/lib'])
  await switchOff(host)
}

/** Kills everything on the host and waits until its file system is unmounted. */
async function switchOff(host: HostName): Promise<void> {
  await waitFor(`the processes of ${host} to end`, 20, () => {
    const left = hostProcesses(host)
    for (const pid of left) signal(pid, 'SIGKILL')
    return left.length === 0
  })
  await rm(join(hostDirectory(host), 'init'), { force: true })
  await releasedLoops(imageOf(host))
}
