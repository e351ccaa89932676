// What is read of a domain's image files before a session: their exported size, whether each is a whole disk, UEFI variables.

import { readFile, stat } from 'node:fs/promises'
import { z } from 'zod'
import { Failure } from '../../shared/failures.ts'
import { reasonOf, run } from '../../shared/host/run.ts'
import type { SessionDiskRecord } from './journal.ts'

/** A refusal with what to do about it. */
export function refuse(message: string, remedy?: string): never {
  throw new Failure('SOURCE_REFUSED', message, { remedy })
}

/** Size in bytes of a file or block device as nbd-server will export it. */
export async function exportedSize(
  disk: Pick<SessionDiskRecord, 'base' | 'baseType'>,
): Promise<number> {
  if (disk.baseType === 'file') {
    const found = await stat(disk.base).catch((error: unknown) =>
      refuse(`cannot read ${disk.base}: ${String(error)}`),
    )
    return found.size
  }
  const result = await run('blockdev', ['--getsize64', disk.base])
  if (result.exitCode !== 0) refuse(`cannot read the size of ${disk.base}: ${reasonOf(result)}`)
  return Number(result.stdout)
}

/** Block devices: a buffered reader must not see pages from before. @throws Failure SNAPSHOT_FAILED */
export async function flushBuffers(
  disk: Pick<SessionDiskRecord, 'base' | 'baseType'>,
): Promise<void> {
  if (disk.baseType !== 'block') return
  const result = await run('blockdev', ['--flushbufs', disk.base])
  if (result.exitCode !== 0)
    throw new Failure('SNAPSHOT_FAILED', `blockdev --flushbufs ${disk.base}: ${reasonOf(result)}`)
}

/** The UEFI variables of a domain. @throws Failure SOURCE_REFUSED */
export async function readNvram(file: string): Promise<Buffer> {
  return readFile(file).catch((error: unknown) =>
    refuse(`cannot read the UEFI variables ${file}: ${String(error)}`),
  )
}

const imageInfo = z.object({
  'backing-filename': z.string().optional(),
  'format-specific': z
    .object({ data: z.object({ 'data-file': z.string().optional() }) })
    .optional(),
})

/** A qcow2 must hold all of its disk: the header is the witness that the XML can hide. */
export async function checkWhole(domain: string, disk: SessionDiskRecord): Promise<void> {
  if (disk.format !== 'qcow2') return
  const result = await run('qemu-img', ['info', '-U', '-f', 'qcow2', '--output=json', disk.base])
  if (result.exitCode !== 0)
    refuse(`disk ${disk.target} of ${domain}: qemu-img info ${disk.base}: ${reasonOf(result)}`)
  const info = imageInfo.parse(JSON.parse(result.stdout))
  const other = info['backing-filename'] ?? info['format-specific']?.data['data-file']
  if (other !== undefined)
    refuse(
      `disk ${disk.target} of ${domain}: ${disk.base} keeps a part of its data in ${other}, so it alone is not a whole disk`,
      `flatten it: virsh blockpull ${domain} ${disk.target} --wait`,
    )
}
