// A sample of the faults that `npm run test:faults` runs: every kind of them, over the same table, by the same runner.

import t from 'tap'
import { line } from '../faults/report.ts'
import { Runner } from '../faults/runner.ts'
import { diceOf } from '../faults/scenario.ts'
import { sample } from '../faults/table.ts'

t.setTimeout(1150_000)

const ROUNDS = 2

t.test('after a fault the source is as it was found', async t => {
  const seed = Date.now() % 1_000_000
  t.comment(`seed ${seed}`)
  const runner = new Runner({ dice: diceOf(seed), rounds: ROUNDS })
  t.teardown(() => runner[Symbol.asyncDispose]())
  for (const scenario of sample())
    t.test(`${scenario.step}: ${scenario.fault}`, async t => {
      const cell = await runner.run(scenario)
      t.comment(line(cell))
      t.strictSame(cell.wrong, [], scenario.name)
    })
})
