// Rows that are run once or twice: a disk of a tebibyte, which is about memory, and a pull after one that was cut short.

import path from 'node:path'
import type { Cleanup } from '../../shared/cleanup.ts'
import { runGroup } from './measure.ts'
import { resultOf, type Result } from './report.ts'
import { ourPull } from './rows.ts'
import { makeImage, serve, type Served, type Shape } from './world.ts'

const GIB = 1024 ** 3
const TEBIBYTE: Shape = { size: 1024 * GIB, data: GIB / 16, every: 32 * GIB }

/** Two pulls: of everything, and again of the same by comparing every chunk. */
export async function tebibyte(
  folder: string,
  cleanup: Cleanup,
  signal: AbortSignal,
): Promise<Result[]> {
  const image = path.join(folder, 'tebibyte')
  await makeImage(image, TEBIBYTE, signal)
  const served = await serve(folder, image, cleanup)
  const row = ourPull('pull-1t', 'clone pull of 1 TiB, 2 GiB of it data', folder, served)
  const run = await row.run(signal)
  await row.clear()
  await runGroup(['rm', '-f', image], signal)
  return [{ ...resultOf(row, [run]), otherImage: true }]
}

/** A pull that stopped somewhere in the middle, and the next one, which is what is measured. */
export async function resumed(
  folder: string,
  served: Served,
  rounds: number,
  signal: AbortSignal,
): Promise<Result> {
  const row = ourPull('resumed', '', folder, served)
  const runs = []
  let left = 0
  for (let round = 0; round < rounds; round++) {
    await row.clear()
    const { config } = served
    // Ends with 40 by itself, and leaves what it has.
    const first = `"$0" "$1" pull mydomain --config "$2" --max-duration 1s || [ $? = 40 ]`
    const cli = path.join(import.meta.dirname, '..', '..', 'client', 'cli.js')
    await runGroup(['sh', '-c', first, process.execPath, cli, config], signal)
    await runGroup(['sync'], signal)
    const run = await row.run(signal)
    left = run.bytesRead ?? 0
    runs.push(run)
  }
  await row.clear()
  const title = `clone pull after one that was stopped: read ${(left / GIB).toFixed(2)} of 2 GiB`
  return resultOf({ ...row, title }, runs)
}
