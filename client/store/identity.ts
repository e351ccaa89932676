// What a block device is, whatever its name is today: names are given anew at each boot.

import { access, readFile } from 'node:fs/promises'
import path from 'node:path'
import { run } from '../../shared/host/run.ts'

/**
 * The identity of a block device: of its logical volume, array, partition, backing file or hardware, in that order.
 * @param device its real path in /dev. @returns undefined when it has none that survives a restart
 */
export async function identityOf(device: string): Promise<string | undefined> {
  const sys = path.join('/sys/class/block', path.basename(device))
  const mapped = await wordIn(path.join(sys, 'dm/uuid'))
  if (mapped !== undefined) return `dm ${mapped}`
  if (await exists(path.join(sys, 'md')))
    return said('md', 'mdadm', '--detail', '--export', device, /^MD_UUID=(\S+)$/m)
  if (await exists(path.join(sys, 'loop')))
    return said('loop', 'losetup', '-nO', 'BACK-MAJ:MIN,BACK-INO', device, /^\s*(\S.*\S)\s*$/)
  if (await exists(path.join(sys, 'partition')))
    return said('partition', 'blkid', '-po', 'export', device, /^PART_ENTRY_UUID=(\S+)$/m)
  for (const kind of ['wwid', 'device/wwid', 'serial', 'device/serial']) {
    const word = await wordIn(path.join(sys, kind))
    if (word !== undefined) return `${path.basename(kind)} ${word}`
  }
  return undefined
}

/** What a program says of a device. */
async function said(
  kind: string,
  program: string,
  option: string,
  value: string,
  device: string,
  pattern: RegExp,
): Promise<string | undefined> {
  const { stdout } = await run(program, [option, value, device], { timeoutMs: 10_000 })
  const [, found] = pattern.exec(stdout) ?? []
  return found && `${kind} ${found.replaceAll(/\s+/g, ' ')}`
}

async function wordIn(file: string): Promise<string | undefined> {
  const text = await readFile(file, 'utf8').catch(() => '')
  return text.trim().replaceAll(/\s+/g, ' ') || undefined
}

const exists = (file: string): Promise<boolean> =>
  access(file).then(
    () => true,
    () => false,
  )
