// The numbered records that the guest wrote, read out of a clone's images without mounting or starting anything.

import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { execa } from 'execa'
import { Cleanup } from '../../shared/cleanup.ts'
import { Failure } from '../../shared/failures.ts'

export interface ImageRecords {
  /** The numbers, in the order in which they stand in the file. */
  readonly numbers: readonly number[]
  /** What `e2fsck -fn` says of the file system; undefined when it is clean. */
  readonly damage: string | undefined
}

/**
 * Reads the records of one image that nobody writes to.
 *
 * @param journal replay the file system's journal first, on a copy; needed for a `crash` or live image, and a
 *   `quiesced` one should not need it
 */
export async function readRecords(
  image: string,
  format: 'raw' | 'qcow2',
  { journal = false } = {},
): Promise<ImageRecords> {
  await using cleanup = new Cleanup()
  const directory = await mkdtemp(join(tmpdir(), 'nbd-clone-records-'))
  cleanup.defer(() => rm(directory, { recursive: true, force: true }))
  const raw = join(directory, 'raw')
  await execa('qemu-img', ['convert', '-U', '-f', format, '-O', 'raw', image, raw])
  // 0: nothing to do, 1: something repaired.
  if (journal) await fsck(['-fp', raw], [0, 1])
  const check = await execa('e2fsck', ['-fn', raw], { reject: false })
  const { stdout } = await execa('debugfs', ['-R', 'cat /records', raw])
  return {
    numbers: stdout
      .split('\n')
      .filter(line => line !== '')
      .map(Number),
    damage: check.exitCode === 0 ? undefined : `${check.stdout}\n${check.stderr}`,
  }
}

async function fsck(args: string[], accepted: number[]): Promise<void> {
  const { exitCode, stdout } = await execa('e2fsck', args, { reject: false })
  if (!accepted.includes(exitCode ?? -1))
    throw new Failure(
      'INTEGRITY',
      `e2fsck ${args.join(' ')} ended with ${exitCode ?? -1}: ${stdout}`,
    )
}

/** Fails unless both disks are of one instant: 1..n on each without gaps, last(vdb) is last(vda) or one less. */
export function assertGapless(vda: readonly number[], vdb: readonly number[]): void {
  for (const [disk, numbers] of [['vda', vda] as const, ['vdb', vdb] as const]) {
    const wrong = numbers.findIndex((number, index) => number !== index + 1)
    if (wrong !== -1)
      throw new Failure(
        'INTEGRITY',
        `${disk}: record ${wrong + 1} reads ${numbers[wrong] ?? 'nothing'}`,
      )
  }
  const behind = vda.length - vdb.length
  if (vda.length === 0) throw new Failure('INTEGRITY', 'vda holds no records')
  if (behind !== 0 && behind !== 1)
    throw new Failure(
      'INTEGRITY',
      `not one instant: vda ends with record ${vda.length}, vdb with ${vdb.length}`,
    )
}
