// The rows about changes: a dense disk of which some changes, in one run or scattered. The gate of the tests says what changed,
// as the product's says what QEMU recorded. Beside them, rsync brings a copy of its own up to date, and nbdcopy copies all.

import { randomBytes, randomFillSync } from 'node:crypto'
import { open, rm } from 'node:fs/promises'
import path from 'node:path'
import type { Cleanup } from '../../shared/cleanup.ts'
import { GRAIN, grainSet, type GrainSet } from '../../shared/grain-set.ts'
import { knowHosts, sshFolder } from '../client/sshd.ts'
import { measure, runGroup } from './measure.ts'
import { note, resultOf, type Result } from './report.ts'
import { ourPull, type Row, type Run } from './rows.ts'
import { ownerOf, plainSsh } from './ways.ts'
import { makeImage, serve, type Served } from './world.ts'

const GIB = 1024 ** 3
/** The largest image, its clone, and the other programs' copy. */
export const DELTA_SPACE = 26 * GIB

/** What changes between two pulls. */
export interface Change {
  readonly percent: number
  readonly how: 'run' | 'scattered'
}
export const CHANGES: readonly Change[] = [0.1, 1, 10].flatMap(percent => [
  { percent, how: 'run' },
  { percent, how: 'scattered' },
])
const WORDS = { run: 'in one run', scattered: 'in blocks of 64 KiB all over it' }

/** What one group of rows works on. */
interface Group {
  /** Bytes. */
  readonly size: number
  readonly changes: readonly Change[]
  readonly withPeers: boolean
}
const GROUPS: Readonly<Record<string, Group>> = {
  'delta-8g': { size: 8 * GIB, changes: CHANGES.slice(2, 4), withPeers: false },
  'delta-2g': { size: 2 * GIB, changes: CHANGES, withPeers: true },
}
export const DELTA_NAMES = Object.keys(GROUPS)

/** Which grains a change concerns: a run begins anywhere, scattered ones begin anywhere too. @returns grain numbers */
export function grainsOf({ percent, how }: Change, size: number): number[] {
  const all = Math.floor(size / GRAIN)
  const count = Math.round((all * percent) / 100)
  const luck = randomBytes(4).readUInt32LE() / 2 ** 32
  const first = Math.floor((how === 'run' ? all - count : all / count) * luck)
  const step = how === 'run' ? 1 : Math.floor(all / count)
  return Array.from({ length: count }, (_, at) => (first + at * step) % all)
}

async function change(image: string, what: Change, size: number): Promise<GrainSet> {
  const changed = grainSet(size)
  await using file = await open(image, 'r+')
  for (const grain of grainsOf(what, size)) {
    await file.write(randomFillSync(Buffer.alloc(GRAIN)), 0, GRAIN, grain * GRAIN)
    changed.mark(grain * GRAIN, GRAIN)
  }
  await file.sync()
  return changed
}

/** The rows of a group; each round begins with a pull of everything. */
export async function deltaRows(
  group: string,
  folder: string,
  rounds: number,
  cleanup: Cleanup,
  signal: AbortSignal,
): Promise<Result[]> {
  const { size, changes, withPeers } = GROUPS[group] ?? { size: 0, changes: [], withPeers: false }
  const image = path.join(folder, group)
  await makeImage(image, { size, data: size, every: size }, signal)
  const served = await serve(folder, image, cleanup)
  let changed = grainSet(size)
  served.handlers.changes = ({ at }) => {
    const extents = [...changed.extents(at)].map(([offset, length]): [number, number] => [
      offset,
      length,
    ])
    return { size, extents: extents.slice(0, 16_384), next: extents[16_384]?.[0] ?? null }
  }
  const ours = ourPull(group, '', folder, served)
  const [rsync, nbdcopy] = withPeers ? await peerRows(folder, served, cleanup) : []
  if (rsync?.copy !== undefined) await runGroup(['cp', image, rsync.copy], signal)

  const results = new Map<string, Result>()
  const run = async (row: Row, name: string, title: string, of?: number): Promise<void> => {
    await runGroup(['sync'], signal)
    const one = await row.run(signal)
    note(`${name} ${one.seconds.toFixed(2)} s`)
    const runs: Run[] = [...(results.get(name)?.runs ?? []), one]
    if (runs.length === 1) await runGroup(['cmp', image, row.copy ?? ''], signal)
    const ratio = of === undefined ? '' : `: read ${((one.bytesRead ?? 0) / of).toFixed(3)} of that`
    // What is typed is the same in all rows of a kind.
    const command = results.size < 2 || title.includes('rsync') ? row.command : ''
    results.set(name, resultOf({ ...row, name, title: `${title}${ratio}`, command }, runs))
  }
  for (let round = 0; round < rounds; round++) {
    await ours.clear()
    const disk = `${size / GIB} GiB`
    await run(ours, `${group}-full`, `${disk}, the first pull`, size)
    if (nbdcopy) await run(nbdcopy, `${group}-nbdcopy`, `${disk}, ${nbdcopy.title}`)
    await nbdcopy?.clear()
    for (const what of changes) {
      const name = `${group}-${what.percent}%-${what.how}`
      const title = `${what.percent} % changed ${WORDS[what.how]}`
      changed = await change(image, what, size)
      await run(ours, name, title, changed.bytes())
      if (rsync) await run(rsync, `${name}-rsync`, `${title}: ${rsync.title}`)
    }
  }
  for (const row of [ours, rsync]) await row?.clear()
  await runGroup(['rm', '-f', image], signal)
  return [...results.values()].map(result => ({ ...result, otherImage: true }))
}

/** What reads both sides, and what reads everything. */
async function peerRows(
  folder: string,
  { uri, image }: Served,
  cleanup: Cleanup,
): Promise<[Row, Row]> {
  const owner = ownerOf(cleanup)
  const dir = sshFolder(owner)
  const { command: ssh, known } = await plainSsh(owner, dir)
  knowHosts(dir, known)
  const row = (name: string, title: string, command: string): Row => {
    const copy = path.join(folder, `${name}.raw`)
    return {
      ...{ name, title, command, copy },
      run: signal => measure(['sh', '-ec', command, 'sh', uri, copy, image], folder, signal),
      clear: () => rm(copy, { force: true }),
    }
  }
  return [
    row(
      'rsync',
      'rsync --inplace over ssh',
      `rsync -e '${ssh}' --inplace --no-whole-file --ignore-times 127.0.0.1:"$3" "$2"`,
    ),
    row('nbdcopy', 'nbdcopy of all', 'nbdcopy --connections=1 "$1" "$2"'),
  ]
}
