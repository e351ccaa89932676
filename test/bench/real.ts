// The rows on real domains, frozen and merged by the product: pulls of what QEMU recorded against virtnbdbackup's increments,
// three disks of mixed format, and several domains at once.

import { randomInt } from 'node:crypto'
import { rm } from 'node:fs/promises'
import path from 'node:path'
import { Cleanup } from '../../shared/cleanup.ts'
import { GRAIN } from '../../shared/grain-set.ts'
import { CHANGES, grainsOf } from './delta.ts'
import { guestCost } from './guest-cost.ts'
import {
  comparePulled,
  inLab,
  labWorld,
  makeDomain,
  pullInLab,
  writeGrains,
  type BenchDisk,
  type LabWorld,
} from './lab-world.ts'
import { measure, runGroup } from './measure.ts'
import { note, resultOf, type Result } from './report.ts'
import type { Row, Run } from './rows.ts'
import { makeImage } from './world.ts'

const MIB = 1024 ** 2
const GIB = 1024 ** 3
/** Contents, and the source's and standby's copies of them. */
export const REAL_SPACE = 20 * GIB
export const REAL_NAMES = ['inc', 'mixed', 'domains', 'guest-cost'] as const

/** @returns tables of rows, and of what the guest feels */
export async function realRows(
  folder: string,
  wanted: (name: string) => boolean,
  rounds: number,
  signal: AbortSignal,
): Promise<{ results: Result[]; guest: string[] }> {
  await using cleanup = new Cleanup()
  const world = await labWorld(folder, cleanup)
  const results: Result[] = []
  if (wanted('inc')) results.push(...(await incRows(world, rounds, signal)))
  if (wanted('mixed')) results.push(...(await mixedRows(world, rounds, signal)))
  if (wanted('domains')) results.push(...(await manyRows(world, rounds, signal)))
  const guest = wanted('guest-cost') ? await guestCost(world, rounds, signal) : []
  return { results: results.map(result => ({ ...result, otherImage: true })), guest }
}

async function content(world: LabWorld, size: number, signal: AbortSignal): Promise<string> {
  const file = path.join(world.folder, `content-${size}`)
  await rm(file, { force: true })
  await makeImage(file, { size, data: size, every: size }, signal)
  return file
}

/** Both get the same writes, each in a domain of its own, because libvirt's checkpoints and its snapshots exclude each other. */
async function incRows(world: LabWorld, rounds: number, signal: AbortSignal): Promise<Result[]> {
  const size = 2 * GIB
  const disks: BenchDisk[] = [
    { target: 'vda', format: 'qcow2', content: await content(world, size, signal) },
  ]
  for (const domain of ['tracked', 'backed']) await makeDomain(world, domain, disks, signal)
  const theirs = (level: 'full' | 'inc'): Row => virtnbdbackup(world, level)
  const ours = pullInLab('inc', '', world, ['tracked'])
  const runs = new Map<string, { row: Row; runs: Run[] }>()
  const run = async (row: Row, name: string, title: string): Promise<Run> => {
    await runGroup(['sync'], signal)
    const one = await row.run(signal)
    note(`${name} ${one.seconds.toFixed(2)} s ${JSON.stringify(one.phases ?? {})}`)
    const before = runs.get(name)?.runs ?? []
    runs.set(name, { row: { ...row, name, title }, runs: [...before, one] })
    return one
  }
  await run(ours, 'inc-full', '2 GiB qcow2, the first pull')
  await run(theirs('full'), 'inc-full-virtnbdbackup', 'virtnbdbackup -l full')
  for (let round = 0; round < rounds; round++)
    for (const what of CHANGES) {
      const grains = grainsOf(what, size)
      const pattern = randomInt(1, 256)
      for (const domain of ['tracked', 'backed'])
        await writeGrains(world, domain, 0, grains, pattern)
      const name = `inc-${what.percent}%-${what.how}`
      const title = `${what.percent} % ${what.how === 'run' ? 'in one run' : 'scattered'}`
      const { bytesRead = 0 } = await run(ours, name, '')
      const read = (bytesRead / (grains.length * GRAIN)).toFixed(3)
      const row = runs.get(name)
      if (row) row.row = { ...row.row, title: `${title}: read ${read} of that` }
      await run(theirs('inc'), `${name}-virtnbdbackup`, `${title}: virtnbdbackup -l inc`)
      if (round === 0) await comparePulled('tracked', disks)
    }
  await theirs('inc').clear()
  await ours.clear()
  return [...runs.values()].map(({ row, runs }, at) =>
    resultOf(
      at < 3 || row.name === 'inc-0.1%-run-virtnbdbackup' ? row : { ...row, command: '' },
      runs,
    ),
  )
}

function virtnbdbackup({ folder }: LabWorld, level: 'full' | 'inc'): Row {
  const output = path.join(folder, 'virtnbdbackup-inc')
  const argv = [
    ...['virtnbdbackup', '--domain', 'backed', '--level', level, '--output', output],
    ...['--scratchdir', '/var/lib/libvirt/images'],
  ]
  return {
    name: '',
    title: '',
    command: `virtnbdbackup -d backed -l ${level} -o "$2"`,
    copy: undefined,
    run: signal => measure(argv, folder, signal, inLab('source')),
    clear: () => rm(output, { recursive: true, force: true }),
  }
}

async function mixedRows(world: LabWorld, rounds: number, signal: AbortSignal): Promise<Result[]> {
  const size = GIB
  const file = await content(world, size, signal)
  const disks: BenchDisk[] = [
    { target: 'vda', format: 'raw', content: file },
    { target: 'vdb', format: 'qcow2', content: file },
    { target: 'vdc', format: 'raw', content: file },
  ]
  await makeDomain(world, 'mixed', disks, signal)
  const row = pullInLab('mixed', '', world, ['mixed'])
  const full: Run[] = []
  const later: Run[] = []
  let ratio = ''
  for (let round = 0; round < rounds; round++) {
    await row.clear()
    await runGroup(['sync'], signal)
    const first = await row.run(signal)
    full.push(first)
    const grains = grainsOf({ percent: 1, how: 'scattered' }, size)
    for (const at of disks.keys()) await writeGrains(world, 'mixed', at, grains, randomInt(1, 256))
    await runGroup(['sync'], signal)
    const one = await row.run(signal)
    later.push(one)
    note(`mixed ${first.seconds.toFixed(2)} s, ${one.seconds.toFixed(2)} s`)
    ratio = ((one.bytesRead ?? 0) / (grains.length * GRAIN * disks.length)).toFixed(3)
    if (round === 0) await comparePulled('mixed', disks)
  }
  await row.clear()
  const what = '3 disks of 1 GiB: raw, qcow2, raw'
  return [
    resultOf({ ...row, name: 'mixed-full', title: `${what}: the first pull` }, full),
    resultOf(
      {
        ...row,
        name: 'mixed-1%',
        title: `${what}: 1 % of each scattered: read ${ratio} of that`,
        command: '',
      },
      later,
    ),
  ]
}

/** First pulls of domains of 256 MiB of data each, as that many processes. */
async function manyRows(world: LabWorld, rounds: number, signal: AbortSignal): Promise<Result[]> {
  const size = 256 * MIB
  const file = await content(world, size, signal)
  const names = Array.from({ length: 8 }, (_, at) => `many${at + 1}`)
  const disks: BenchDisk[] = [{ target: 'vda', format: 'raw', content: file }]
  for (const name of names) await makeDomain(world, name, disks, signal)
  const rows = [1, 2, 4, 8].map(count => {
    const title = `${count} domain${count > 1 ? 's' : ''} of 256 MiB at once`
    return pullInLab(`domains-${count}`, title, world, names.slice(0, count))
  })
  const runs = new Map<Row, Run[]>(rows.map(row => [row, []]))
  for (let round = 0; round < rounds; round++)
    for (const row of rows) {
      await row.clear()
      await runGroup(['sync'], signal)
      const run = await row.run(signal)
      runs.get(row)?.push(run)
      note(`${row.name} ${run.seconds.toFixed(2)} s`)
    }
  for (const name of names) await comparePulled(name, disks)
  for (const row of rows) await row.clear()
  return rows.map((row, at) =>
    resultOf(at < 2 ? row : { ...row, command: '' }, runs.get(row) ?? []),
  )
}
