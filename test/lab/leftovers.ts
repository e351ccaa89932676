// What of the lab is on the machine, found by name, and how all of it is swept away.

import { readFileSync } from 'node:fs'
import { access, readFile, rm } from 'node:fs/promises'
import { execa } from 'execa'
import { BIG, HOSTS, markOf, namespaceOf, STATE } from './names.ts'
import { listProcesses, namespaceInode, signal, waitFor, type Process } from './processes.ts'

/** Everything that should not be there when no lab is up, one line each, e.g. `loop /dev/loop0 (...)`. */
export async function leftovers(): Promise<string[]> {
  const files: string[] = []
  for (const path of [STATE, BIG]) if (await exists(path)) files.push(path)
  return [
    ...labProcesses().map(each => `process ${each.pid} (${each.command})`),
    ...(await labMounts()).map(path => `mount ${path}`),
    ...(await labNamespaces()).map(name => `namespace ${name}`),
    ...(await labLoops()).map(loop => `loop ${loop.name} (${loop.file})`),
    ...(await labLinks()).map(name => `link ${name}`),
    ...files.map(path => `directory ${path}`),
  ]
}

/** Ends and removes all of it, whoever left it, and is safe to repeat. */
export async function sweep(): Promise<void> {
  await waitFor('the processes of the lab to end', 20, () => {
    const left = labProcesses()
    for (const each of left) signal(each.pid, 'SIGKILL')
    return left.length === 0
  })
  for (const name of await labNamespaces()) await execa('ip', ['netns', 'delete', name])
  for (const name of await labLinks())
    await execa('ip', ['link', 'delete', name], { reject: false })
  for (const path of (await labMounts()).reverse()) await execa('umount', [path])
  await releasedLoops(BIG)
  await rm(BIG, { recursive: true, force: true })
  await rm(STATE, { recursive: true, force: true })
}

/** Returns when no loop device uses files under that path; one that does not go by itself is detached. */
export async function releasedLoops(path: string): Promise<void> {
  let asked = 0
  await waitFor(`loop devices of ${path} to go`, 10, async () => {
    const left = await labLoops(path)
    // Unmounting frees them a moment later; only what somebody set up by hand on a host stays.
    if (asked++ % 10 === 4)
      for (const loop of left) await execa('losetup', ['-d', loop.name], { reject: false })
    return left.length === 0
  })
}

/** Processes in a namespace of the lab, or started with its mark in their environment. */
function labProcesses(): Process[] {
  const all = listProcesses().filter(each => !each.zombie && each.pid !== process.pid)
  const networks = HOSTS.map(host => namespaceInode(`/run/netns/${namespaceOf(host)}`))
  return all.filter(each => {
    const network = namespaceInode(`/proc/${each.pid}/ns/net`)
    return (network !== undefined && networks.includes(network)) || isMarked(each.pid)
  })
}

const marks = HOSTS.map(host => `NBD_CLONE_LAB=${markOf(host)}`)

function isMarked(pid: number): boolean {
  try {
    const environment = readFileSync(`/proc/${pid}/environ`, 'latin1').split('\0')
    return environment.some(entry => marks.includes(entry))
  } catch {
    return false
  }
}

async function labNamespaces(): Promise<string[]> {
  const names = HOSTS.map(namespaceOf)
  const found: string[] = []
  for (const name of names) if (await exists(`/run/netns/${name}`)) found.push(name)
  return found
}

async function labLinks(): Promise<string[]> {
  const { stdout } = await execa('ip', ['-o', 'link', 'show'])
  return [...stdout.matchAll(/^\d+: (nbd-clone-[^:@]+)/gm)].map(match => match[1] ?? '')
}

/** Mount points on the machine itself; those in the hosts went with the hosts. */
async function labMounts(): Promise<string[]> {
  const mounts = (await readFile('/proc/self/mountinfo', 'utf8')).split('\n')
  return mounts
    .map(line => line.split(' ')[4] ?? '')
    .filter(path => [STATE, BIG].some(ours => path === ours || path.startsWith(`${ours}/`)))
}

interface Loop {
  readonly name: string
  readonly file: string
}

/** Loop devices on the lab's images, after those on files inside such an image. */
async function labLoops(path = BIG): Promise<Loop[]> {
  const columns = 'NAME,MAJ:MIN,BACK-MAJ:MIN,BACK-FILE'
  const { stdout } = await execa('losetup', ['--list', '--json', '--output', columns])
  if (stdout.trim() === '') return []
  const all = (JSON.parse(stdout) as { loopdevices: LoopRow[] }).loopdevices
  const ours = all.filter(row => `${row['back-file'] ?? ''}/`.startsWith(`${path}/`))
  const numbers = ours.map(row => row['maj:min'].trim())
  const nested = all.filter(row => numbers.includes(row['back-maj:min']?.trim() ?? ''))
  return [...nested, ...ours].map(row => ({ name: row.name, file: row['back-file'] ?? '' }))
}

interface LoopRow {
  readonly name: string
  readonly 'maj:min': string
  /** Null when the file system that the file was on has gone. */
  readonly 'back-maj:min': string | null
  readonly 'back-file': string | null
}

async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  )
}
