// What the behaviours of stores do to them: disks to begin with, a moment in a pull, a full file system, a bit that flips.

import { execa } from 'execa'
import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { statfsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { NOBODY, type Watcher } from '../../client/attempt.ts'
import type { Disks } from './changing-source.ts'

const MIB = 1024 * 1024
/** No multiple of a chunk, nor of a page. */
export const ODD = 7 * 512

/** vda has data, a hole, and an odd end; vdb is small. */
export function someDisks(): Disks {
  const vda = Buffer.concat([randomBytes(3 * MIB), Buffer.alloc(2 * MIB), randomBytes(MIB + ODD)])
  return {
    vda: { format: 'raw', content: vda },
    vdb: { format: 'raw', content: randomBytes(MIB + 512) },
  }
}

/** Does something as soon as a phase has begun. */
export const inPhase = (phase: Parameters<Watcher['phase']>[0], act: () => void): Watcher => ({
  ...NOBODY,
  phase: name => {
    if (name === phase) act()
  },
})

/** Takes all that is left of a file system, before it returns; root's reserve, too. */
export function fill(store: string): void {
  const { bfree, bsize } = statfsSync(store)
  const most = String(Math.max(1, bfree * bsize - 4 * MIB))
  execFileSync('sh', ['-c', `fallocate -l ${most} ballast; cat /dev/zero >rest || :`], {
    cwd: store,
    stdio: 'ignore',
  })
}

/** Flips one bit in the middle of a file. */
export async function flip(file: string): Promise<void> {
  const bytes = await readFile(file)
  const at = bytes.length >> 1
  await execa('dd', [`of=${file}`, 'conv=notrunc', 'bs=1', `seek=${at}`, 'status=none'], {
    input: Buffer.from([bytes.readUInt8(at) ^ 1]),
  })
}
