// The rows about how full a disk is, and on which file system the clone lies: our pull against nbdcopy on the same export, and
// against nbdcopy with sha256sum of both sides at once, as two hosts would.

import { mkdir, truncate, writeFile } from 'node:fs/promises'
import path from 'node:path'
import type { Cleanup } from '../../shared/cleanup.ts'
import { runGroup } from './measure.ts'
import { otherPrograms, ourPull, type Row } from './rows.ts'
import { HALF, makeImage, serve, warm, type Served, type Shape } from './world.ts'

const MIB = 1024 ** 2
const { size } = HALF

/** Level -> how full, and what the clone lies on when that is not the bench's own folder. */
const LEVELS: Readonly<Record<string, { shape: Shape; title: string; isXfs?: true }>> = {
  dense: { shape: { size, data: size, every: size }, title: '4 GiB, all data' },
  tenth: {
    shape: { size, data: 4 * MIB, every: 40 * MIB },
    title: '4 GiB, every tenth 4 MiB data, in one file',
  },
  xfs: { shape: HALF, title: '4 GiB, half data, onto XFS', isXfs: true },
}
const PROGRAMS = ['pull', 'nbdcopy', 'nbdcopy-both-sums']
export const LEVEL_NAMES = Object.keys(LEVELS).flatMap(level =>
  PROGRAMS.map(name => `${level}-${name}`),
)
/** An image, and two copies of it. */
export const LEVELS_SPACE = 3 * size

export interface Level {
  readonly name: string
  readonly served: Served
  readonly rows: readonly Row[]
}

/** Makes one level at a time, so that one image is there at a time. */
export async function* levels(
  folder: string,
  wanted: (name: string) => boolean,
  cleanup: Cleanup,
  signal: AbortSignal,
): AsyncGenerator<Level, void> {
  for (const [name, { shape, title, isXfs }] of Object.entries(LEVELS)) {
    if (!PROGRAMS.some(program => wanted(`${name}-${program}`))) continue
    const image = path.join(folder, name)
    await makeImage(image, shape, signal)
    const served = await serve(folder, image, cleanup)
    const place = isXfs ? await mountXfs(folder, cleanup, signal) : folder
    const store = path.join(place, `${name}.store`)
    const config = path.join(folder, `${name}.here.yaml`)
    await writeFile(config, served.configText.replace(/^store:.*$/m, `store: ${store}`))
    const own = { ...served, config, store }
    const rows = [ourPull('pull', 'clone pull', folder, own), ...otherPrograms(place, own)]
      .filter(row => PROGRAMS.includes(row.name))
      .map(row => ({ ...row, name: `${name}-${row.name}`, title: `${title}: ${row.title}` }))
      .filter(row => wanted(row.name))
    await warm(image, signal)
    yield { name, served: own, rows }
    await runGroup(['rm', '-f', image], signal)
  }
}

/** Killed, the bench takes this along with its mount namespace. */
async function mountXfs(folder: string, cleanup: Cleanup, signal: AbortSignal): Promise<string> {
  const file = path.join(folder, 'xfs.img')
  const place = path.join(folder, 'on-xfs')
  await mkdir(place)
  await writeFile(file, '')
  await truncate(file, LEVELS_SPACE)
  await runGroup(['mkfs.xfs', '-q', file], signal)
  await runGroup(['mount', '-o', 'loop', file, place], signal)
  cleanup.defer(() => runGroup(['umount', place], new AbortController().signal))
  return place
}
