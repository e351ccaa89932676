// What the lab is called on the machine. Everything is found again by these names, never from memory.

import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const HOSTS = ['source', 'standby'] as const
export type HostName = (typeof HOSTS)[number]

export const STORES = ['xfs', 'ext4'] as const
export type Store = (typeof STORES)[number]

/** Labs of different names stand side by side: one that a person makes has none, a test's is the runner's slot. */
export const NAME = process.env['NBD_CLONE_LAB_NAME'] ?? process.env['TAP_JOB_ID'] ?? ''
const SUFFIX = suffixOf(NAME)

function suffixOf(name: string): string {
  if (!/^\d*$/.test(name))
    throw new Error(`NBD_CLONE_LAB_NAME is ${name}: give a number, or nothing`)
  return name === '' ? '' : `-${name}`
}

/** Small and secret things: keys, the keeper's socket and log, process ids. */
export const STATE = `/run/nbd-clone-lab${SUFFIX}`
/** The hosts' file systems. */
export const BIG = `/var/tmp/nbd-clone-lab${SUFFIX}`
/** Survives `down`: our packed and installed programs, keyed on the tarball. */
export const CACHE = '/var/tmp/nbd-clone-lab-cache'
export const SOCKET = join(STATE, 'keeper.sock')
export const LOG = join(STATE, 'keeper.log')
/** An abstract socket: the kernel gives it to one process at a time and takes it back when that process ends. */
export const LOCK = `\0nbd-clone-lab${SUFFIX}`
/** The same for whoever installs into the cache, which all labs share. */
export const CACHE_LOCK = '\0nbd-clone-lab-cache'

export const DOMAIN = 'mydomain'
export const ADDRESS = { source: '10.77.77.1', standby: '10.77.77.2' } as const

export function isHost(text: string | undefined): text is HostName {
  return HOSTS.some(host => host === text)
}

export function namespaceOf(host: HostName): string {
  return `nbd-clone-${host}${SUFFIX}`
}

/** Marks every process of a host, in its environment. */
export function markOf(host: HostName): string {
  return `${host}${SUFFIX}`
}

export function hostDirectory(host: HostName): string {
  return join(STATE, host)
}

export function imageOf(host: HostName): string {
  return join(BIG, `${host}.img`)
}

/** The checkout this file runs from, whether as source or from dist/. */
export const ROOT = findRoot(dirname(fileURLToPath(import.meta.url)))

function findRoot(directory: string): string {
  return existsSync(join(directory, 'package.json')) ? directory : findRoot(dirname(directory))
}

/** A script of the lab that is not compiled, e.g. `enter.sh`. */
export function script(name: string): string {
  return join(ROOT, 'test', 'lab', name)
}
