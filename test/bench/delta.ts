// The rows about changes: a dense disk of 8 GiB, of which 1 % changes, in one run or scattered. The gate of the tests says what
// changed, as the product's says what QEMU recorded. Beside each, rsync brings a copy of its own up to date, and nbdcopy copies all.

import { randomBytes, randomFillSync } from 'node:crypto'
import { open, rm } from 'node:fs/promises'
import path from 'node:path'
import type { Cleanup } from '../../shared/cleanup.ts'
import { GRAIN, grainSet, type GrainSet } from '../../shared/grain-set.ts'
import { measure, runGroup } from './measure.ts'
import { resultOf, type Result } from './report.ts'
import { ourPull, type Row, type Run } from './rows.ts'
import { makeImage, serve, type Served, type Shape } from './world.ts'

const GIB = 1024 ** 3
const DENSE: Shape = { size: 8 * GIB, data: 8 * GIB, every: 8 * GIB }
/** The image, its clone, and the other programs' copy. */
export const DELTA_SPACE = 26 * GIB
/** Grains in 1 % of it. */
const GRAINS = Math.round(DENSE.size / GRAIN / 100)

const WHERE = {
  'delta-full': 'the first pull of 8 GiB',
  'delta-run': '1 % changed in one run',
  'delta-scattered': '1 % changed in blocks of 64 KiB all over it',
} as const
type Name = keyof typeof WHERE

/** Changes 1 % of the image. @returns what changed */
async function change(image: string, name: Name): Promise<GrainSet> {
  const changed = grainSet(DENSE.size)
  await using file = await open(image, 'r+')
  const all = DENSE.size / GRAIN
  const first = Math.floor((all - GRAINS) * (randomBytes(4).readUInt32LE() / 2 ** 32))
  for (let done = 0; done < GRAINS; done++) {
    const grain =
      name === 'delta-run' ? first + done : (first + done * Math.floor(all / GRAINS)) % all
    await file.write(randomFillSync(Buffer.alloc(GRAIN)), 0, GRAIN, grain * GRAIN)
    changed.mark(grain * GRAIN, GRAIN)
  }
  await file.sync()
  return changed
}

/** @param rounds each with a pull of everything, and two of what changed */
export async function deltaRows(
  folder: string,
  rounds: number,
  cleanup: Cleanup,
  signal: AbortSignal,
): Promise<Result[]> {
  const image = path.join(folder, 'dense')
  await makeImage(image, DENSE, signal)
  const served = await serve(folder, image, cleanup)
  let changed = grainSet(DENSE.size)
  served.handlers.changes = ({ at }) => {
    const extents = [...changed.extents(at)].map(([offset, length]) => {
      return [offset, length] as [number, number]
    })
    return {
      size: DENSE.size,
      extents: extents.slice(0, 16_384),
      next: extents[16_384]?.[0] ?? null,
    }
  }
  const runs = new Map<Name, Run[]>()
  const peers = peerRows(folder, served)
  const peerRuns = new Map<string, Run[]>()
  for (const peer of peers.slice(0, 1)) await runGroup(['cp', image, peer.copy ?? ''], signal)
  const read = new Map<Name, number>()
  const row = ourPull('delta', '', folder, served)
  for (let round = 0; round < rounds; round++) {
    await row.clear()
    for (const name of Object.keys(WHERE) as Name[]) {
      if (name !== 'delta-full') changed = await change(image, name)
      await runGroup(['sync'], signal)
      const run = await row.run(signal)
      if (round === 0) await runGroup(['cmp', image, row.copy ?? ''], signal)
      runs.set(name, [...(runs.get(name) ?? []), run])
      read.set(name, run.bytesRead ?? 0)
      for (const peer of peers) {
        const key = `${name}-${peer.name}`
        if (name === 'delta-full') continue
        await runGroup(['sync'], signal)
        peerRuns.set(key, [...(peerRuns.get(key) ?? []), await peer.run(signal)])
        if (round === 0) await runGroup(['cmp', image, peer.copy ?? ''], signal)
      }
    }
  }
  await row.clear()
  for (const peer of peers) await peer.clear()
  const others = peers.flatMap(peer =>
    (['delta-run', 'delta-scattered'] as const).map(name => {
      const key = `${name}-${peer.name}`
      return resultOf(
        { ...peer, name: key, title: `${WHERE[name]}: ${peer.title}` },
        peerRuns.get(key) ?? [],
      )
    }),
  )
  const ours = (Object.keys(WHERE) as Name[]).map(name => {
    const bytes = read.get(name) ?? 0
    const of = name === 'delta-full' ? DENSE.size : changed.bytes()
    const title = `${WHERE[name]}: read ${(bytes / of).toFixed(2)} of it`
    return resultOf({ ...row, name, title }, runs.get(name) ?? [])
  })
  return [...ours, ...others]
}

/** What reads both sides, and what reads everything. */
function peerRows(folder: string, { uri, image }: Served): Row[] {
  const copy = path.join(folder, 'peer.raw')
  const row = (name: string, title: string, command: string): Row => ({
    ...{ name, title, command, copy },
    run: signal => measure(['sh', '-ec', command, 'sh', uri, copy, image], folder, signal),
    clear: () => rm(copy, { force: true }),
  })
  // Two processes, as with ssh, but without its cost: the "remote shell" runs what comes after the host's name.
  const rsh = `printf '#!/bin/sh\\nshift\\nexec "$@"\\n' >"$2.rsh"; chmod +x "$2.rsh"`
  return [
    row(
      'rsync',
      'rsync --inplace, not through ssh',
      `${rsh}; rsync -e "$2.rsh" --inplace --no-whole-file far:"$3" "$2"; rm "$2.rsh"`,
    ),
    row('nbdcopy', 'nbdcopy of all', 'nbdcopy --connections=1 "$1" "$2"'),
  ]
}
