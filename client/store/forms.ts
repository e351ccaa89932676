// What a generation's disks are kept as, and what that takes in the file system. Looks at names and sizes only.

import { lstat, readdir } from 'node:fs/promises'
import path from 'node:path'
import type { Sound } from './generation.ts'
import { imageName } from './layout.ts'

export interface DiskForm {
  readonly target: string
  /** A whole image, a record of what differs from another generation, or a link to a block device. */
  readonly form: 'whole' | 'record' | 'device' | 'missing'
  /** Bytes it occupies in the store; blocks that generations share count in each. */
  readonly bytes: number
}

/** A generation that vanishes meanwhile has all its disks missing. */
export async function formsOf({
  dir,
  generation,
}: Pick<Sound, 'dir' | 'generation'>): Promise<DiskForm[]> {
  const names = await readdir(dir).catch((): string[] => [])
  return Promise.all(
    generation.disks.map(async disk => {
      const image = imageName(disk)
      const whole = names.includes(image)
      const name = whole ? image : names.find(one => one.startsWith(`${image}.from-`))
      const { target } = disk
      const stats =
        name === undefined ? undefined : await lstat(path.join(dir, name)).catch(() => undefined)
      if (!stats) return { target, form: 'missing', bytes: 0 }
      if (stats.isSymbolicLink()) return { target, form: 'device', bytes: 0 }
      return { target, form: whole ? 'whole' : 'record', bytes: stats.blocks * 512 }
    }),
  )
}

/** Bytes that a folder's files occupy, and those in its folders; what vanishes meanwhile counts nothing. */
export async function occupiedBy(dir: string): Promise<number> {
  const entries = await readdir(dir, { withFileTypes: true, recursive: true }).catch(() => [])
  const sizes = await Promise.all(
    entries.map(async ({ name, parentPath }) => {
      const stats = await lstat(path.join(parentPath, name)).catch(() => undefined)
      return stats?.isFile() ? stats.blocks * 512 : 0
    }),
  )
  return sizes.reduce((sum, one) => sum + one, 0)
}
