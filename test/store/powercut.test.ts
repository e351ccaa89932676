// A store is broken, and must be whole again after one command: power cuts at any of its writes, kills, a full file system, a
// bad medium, flipped bits, clocks that jump. A sample of each; `npm run test:faults -- --only store` does them all.

import t from 'tap'
import { execa } from 'execa'
import { built, PLAIN } from './built.ts'
import type { Told } from './run.ts'

const seed = process.env['SEED'] ?? String(Date.now() % 1_000_000)

const SAMPLES: readonly (readonly [what: string, way: string, times: number])[] = [
  ['power', 'reflink', 6],
  ['power', 'in-place', 6],
  ['kill', 'in-place', 1],
  ['space-phases', 'reflink', 1],
  ['io-phases', 'in-place', 1],
  ['flip', 'reflink', 1],
  ['swap', 'in-place', 1],
  ['clock', 'reflink', 1],
]

for (const [what, way, times] of SAMPLES)
  t.test(`${what}, ${way}: what is left is a whole clone`, async t => {
    t.comment(`seed ${seed}`)
    const argv = [built('run'), what, way, seed, String(times)]
    const ran = await execa(process.execPath, argv, { env: PLAIN, reject: false, timeout: 250_000 })
    t.equal(ran.exitCode, 0, ran.stderr)
    const { times: done, wrong } = JSON.parse(ran.stdout) as Told
    t.equal(done, times)
    t.strictSame(wrong, [])
  })
