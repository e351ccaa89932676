// What the guest has on its disks, by its own answer and in the images: numbered records that it writes by itself, and
// marks that the test asks it to write. A record that was lost could be written again after a reboot; a mark could not.

import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { randomUUID } from 'node:crypto'
import { execa } from 'execa'
import { Cleanup } from '../../shared/cleanup.ts'
import type { Lab } from '../lab/lab.ts'
import { assertGapless } from '../lab/records.ts'

/** What must be in the images from now on: the guest has said that it is synced. */
export interface Synced {
  readonly vda: number
  readonly vdb: number
  readonly marks: readonly string[]
}
export const NOTHING: Synced = { vda: 0, vdb: 0, marks: [] }

// The last record before the sync: one that the guest writes meanwhile may not be synced yet.
const MARK = `for disk in a b; do
  last=$(tail -n 1 /data/$disk/records)
  echo "$1" >>/data/$disk/marks; sync -f /data/$disk/marks; echo "$last"
done`

/** Has the guest write a new mark to both disks. */
export async function mark(lab: Lab, before: Synced): Promise<Synced> {
  const made = randomUUID()
  const { stdout, exitCode } = await lab.guest(['sh', '-c', MARK, 'mark', made])
  const [vda = 0, vdb = 0] = stdout.split('\n').map(Number)
  if (exitCode !== 0) throw new Error('the guest could not write a mark')
  const { max } = Math
  return { vda: max(vda, before.vda), vdb: max(vdb, before.vdb), marks: [...before.marks, made] }
}

export interface Image {
  readonly path: string
  readonly format: 'raw' | 'qcow2'
}

/** What is wrong with two images that nobody writes to: damage, gaps, two instants, or something synced that is missing. */
export async function dataFaults(vda: Image, vdb: Image, synced: Synced): Promise<string[]> {
  const [a, b] = await Promise.all([readImage(vda), readImage(vdb)])
  assertGapless(a.records, b.records)
  const wrong: string[] = []
  for (const [disk, image] of [
    ['vda', a],
    ['vdb', b],
  ] as const) {
    const [least, found] = [synced[disk], image.records.length]
    if (found < least) wrong.push(`${disk} ends with record ${found}, but ${least} was synced`)
    const lost = synced.marks.filter(one => !image.marks.includes(one))
    if (lost.length > 0) wrong.push(`${disk} lost ${lost.length} of ${synced.marks.length} marks`)
  }
  return wrong
}

interface Found {
  readonly records: readonly number[]
  readonly marks: readonly string[]
}

/** Replays the file system's journal on a copy, checks that, and reads both files. */
async function readImage({ path, format }: Image): Promise<Found> {
  await using cleanup = new Cleanup()
  const directory = await mkdtemp(join(tmpdir(), 'nbd-clone-faults-'))
  cleanup.defer(() => rm(directory, { recursive: true, force: true }))
  const raw = join(directory, 'raw')
  await execa('qemu-img', ['convert', '-U', '-f', format, '-O', 'raw', path, raw])
  // 0: nothing to do, 1: the journal replayed.
  const replay = await execa('e2fsck', ['-fp', raw], { reject: false })
  if (![0, 1].includes(replay.exitCode ?? -1)) throw new Error(`${path}: ${replay.stdout}`)
  await execa('e2fsck', ['-fn', raw])
  const lines = async (file: string): Promise<string[]> => {
    const { stdout } = await execa('debugfs', ['-R', `cat /${file}`, raw])
    return stdout.split('\n').filter(line => line !== '')
  }
  return { records: (await lines('records')).map(Number), marks: await lines('marks') }
}
