// Who uses a clone's images on this host, whatever locks say: processes, loop devices, running domains.

import { readdir, readFile, realpath } from 'node:fs/promises'
import { openersOf } from '../../shared/host/openers.ts'
import { run } from '../../shared/host/run.ts'

/** One sentence per use of any of the files; this process's own do not count. */
export async function usersOf(files: readonly string[]): Promise<string[]> {
  const users: string[] = []
  const real = await Promise.all(files.map(file => realpath(file).catch(() => undefined)))
  const present = real.filter(file => file !== undefined)
  if (present.length === 0) return users
  const loops = await loopDevices()
  const domains = await activeDomains()
  for (const file of present) {
    for (const { pid, command } of await openersOf(file))
      if (pid !== process.pid)
        users.push(`process ${pid} (${command})${await ofDomain(pid)} has ${file} open`)
    for (const { user, of } of [...loops, ...domains])
      if (of === file) users.push(`${user} uses ${file}`)
  }
  return users
}

interface Use {
  readonly user: string
  readonly of: string
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
      const of = await readFile(`/sys/block/${name}/loop/backing_file`, 'utf8').catch(() => '')
      return { user: `/dev/${name}`, of: of.trimEnd() }
    }),
  )
}

/** The disks of this host's running domains; none when libvirt is not here. */
async function activeDomains(): Promise<Use[]> {
  const virsh = ['--readonly', '--connect', 'qemu:///system']
  const list = await run('virsh', [...virsh, 'list', '--name'], { timeoutMs: 10_000 })
  if (list.exitCode !== 0) return []
  const uses: Use[] = []
  for (const domain of list.stdout.split('\n').filter(line => line.trim() !== '')) {
    const disks = await run('virsh', [...virsh, 'domblklist', '--domain', domain], {
      timeoutMs: 10_000,
    })
    for (const line of disks.stdout.split('\n')) {
      const source = line.trim().replace(/^\S+\s+/, '')
      if (!source.startsWith('/')) continue
      uses.push({
        user: `the running domain ${domain}`,
        of: await realpath(source).catch(() => source),
      })
    }
  }
  return uses
}
