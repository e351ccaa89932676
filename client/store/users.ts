// Who uses a clone's images on this host, whatever locks say: processes, loop devices, running domains.

import { readdir, readFile, realpath } from 'node:fs/promises'
import { DOMParser } from '@xmldom/xmldom'
import { openersOfEach } from '../../shared/host/openers.ts'
import { run } from '../../shared/host/run.ts'

/** Somebody who has an image open. */
export interface User {
  /** Who does what with which file: one sentence. */
  readonly text: string
  /** Can write into it; a reader can not. */
  readonly writes: boolean
}

const VIRSH = ['--readonly', '--connect', 'qemu:///system']
const VIRSH_MS = 10_000

/**
 * Every use of any of the files, writers first; this process's own do not count, nor does a domain that is shut off.
 * @param files what does not exist is nobody's; a symlink is what it leads to
 */
export async function usersOf(files: readonly string[]): Promise<User[]> {
  const real = await Promise.all(files.map(file => realpath(file).catch(() => undefined)))
  const present = [...new Set(real.filter(file => file !== undefined))]
  if (present.length === 0) return []
  const users: User[] = []
  for (const [file, openers] of await openersOfEach(present))
    for (const { pid, command, writes } of openers)
      if (pid !== process.pid) {
        const how = writes ? 'open for writing' : 'open for reading'
        users.push({
          text: `process ${pid} (${command})${await ofDomain(pid)} has ${file} ${how}`,
          writes,
        })
      }
  const among = new Set(present)
  for (const { user, of, writes } of [...(await loopDevices()), ...(await activeDomains())])
    if (among.has(of))
      users.push({ text: `${user} ${writes ? 'can write to' : 'reads'} ${of}`, writes })
  return users.sort((a, b) => Number(b.writes) - Number(a.writes))
}

interface Use {
  readonly user: string
  /** Absolute, without symlinks. */
  readonly of: string
  readonly writes: boolean
}

/** QEMU's command line names its domain, also when libvirtd does not run. */
async function ofDomain(pid: number): Promise<string> {
  const command = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')
  const name = /\0-name\0(?:guest=)?([^\0,]+)/.exec(command)?.[1]
  return name === undefined ? '' : ` of domain ${name}`
}

/** A loop device holds its file in the kernel, where no process shows it. */
async function loopDevices(): Promise<Use[]> {
  const names = (await readdir('/sys/block').catch(() => [])).filter(name =>
    name.startsWith('loop'),
  )
  return Promise.all(
    names.map(async name => {
      const fact = (key: string): Promise<string> =>
        readFile(`/sys/block/${name}/${key}`, 'utf8').catch(() => '')
      const of = (await fact('loop/backing_file')).trimEnd()
      return { user: `/dev/${name}`, of, writes: (await fact('ro')).trim() !== '1' }
    }),
  )
}

/** The disks of this host's running domains; none when libvirt is not here. */
async function activeDomains(): Promise<Use[]> {
  const list = await run('virsh', [...VIRSH, 'list', '--name'], { timeoutMs: VIRSH_MS })
  if (list.exitCode !== 0) return []
  const uses: Use[] = []
  for (const domain of list.stdout.split('\n').filter(line => line.trim() !== '')) {
    const xml = await run('virsh', [...VIRSH, 'dumpxml', '--domain', domain], {
      timeoutMs: VIRSH_MS,
    })
    if (xml.exitCode !== 0) continue
    for (const { file, writes } of imagesIn(xml.stdout))
      uses.push({
        user: `the running domain ${domain}`,
        of: await realpath(file).catch(() => file),
        writes,
      })
  }
  return uses
}

/**
 * The image files in a running domain's XML: what a disk is on, what a block job copies it to, and what lies under its
 * overlay, which is only read. XML that cannot be understood names none.
 */
export function imagesIn(xml: string): { file: string; writes: boolean }[] {
  try {
    const document = new DOMParser({ onError: () => undefined }).parseFromString(xml, 'text/xml')
    return [...document.getElementsByTagName('disk')].flatMap(disk => {
      const has = (tag: string): boolean => [...disk.childNodes].some(one => one.nodeName === tag)
      return [...disk.getElementsByTagName('source')].flatMap(source => {
        const file = source.getAttribute('file') ?? source.getAttribute('dev') ?? ''
        const of = source.parentNode?.nodeName
        const writes = (of === 'disk' && !has('readonly')) || of === 'mirror'
        return file.startsWith('/') ? [{ file, writes }] : []
      })
    })
  } catch {
    return []
  }
}
