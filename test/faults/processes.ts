// What runs on a host of the lab, read and killed from outside: no command inside a host is needed, so nothing waits.

import { readFileSync } from 'node:fs'
import { HASHER } from '../../server/digest/words.ts'
import { listProcesses, namespaceInode, signal } from '../lab/processes.ts'
import type { Lab } from '../lab/lab.ts'
import type { HostName } from '../lab/names.ts'

export interface HostProcessEntry {
  /** As the machine sees it. */
  readonly pid: number
  readonly parent: number
  readonly command: string
  readonly args: readonly string[]
}

/** Whom a fault kills. */
export type Victim =
  'hook' | 'nbd-server' | 'serve' | 'client' | 'virsh' | 'libvirtd' | 'QEMU' | 'hasher'

const IS: Record<Exclude<Victim, 'client'>, (process: HostProcessEntry) => boolean> = {
  hook: ({ command, args }) => command === 'node' && args.includes('hook'),
  'nbd-server': ({ command }) => command === 'nbd-server',
  serve: ({ command, args }) => command === 'node' && args.includes('serve'),
  virsh: ({ args }) => args.some(arg => /(^|\/)virsh$/.test(arg)),
  libvirtd: ({ command }) => command === 'libvirtd',
  hasher: ({ command }) => command === HASHER,
  QEMU: ({ command }) => command.startsWith('qemu-system'),
}

/** What is always there: process 1 and its sleep, and the services of a host. */
const FURNITURE =
  /^(sleep 1000000|sh \S+host-init\.sh .*|sshd: \S+ \[listener\].*|virtlogd -d|libvirtd -d)$/

/** Every process on the host. */
export async function processesOn(lab: Lab, host: HostName): Promise<HostProcessEntry[]> {
  const namespace = namespaceInode(await lab.path(host, '/proc/1/ns/pid'))
  return listProcesses()
    .filter(each => !each.zombie && namespaceInode(`/proc/${each.pid}/ns/pid`) === namespace)
    .map(each => ({ ...each, args: argumentsOf(each.pid) }))
}

/** SIGKILL to all of that kind on the source. @returns how many there were */
export async function killOnSource(lab: Lab, victim: Exclude<Victim, 'client'>): Promise<number> {
  const found = (await processesOn(lab, 'source')).filter(IS[victim])
  for (const { pid } of found) signal(pid, 'SIGKILL')
  return found.length
}

/** Processes on the source that are neither its services, nor its guest, nor serve. */
export async function strayProcesses(lab: Lab): Promise<string[]> {
  const known = (each: HostProcessEntry): boolean =>
    FURNITURE.test(each.args.join(' ')) || IS.serve(each) || IS.QEMU(each)
  return (await processesOn(lab, 'source'))
    .filter(each => !known(each))
    .map(({ pid, args, command }) => `${pid} ${args.join(' ').trim() || command}`)
}

function argumentsOf(pid: number): string[] {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').slice(0, -1)
  } catch {
    return []
  }
}
