// The power goes while a store is written: at any write of publish, prune and rollback, what is left after one command is a
// whole clone. A sample; `npm run test:faults -- --only store-power` tries every write.

import t from 'tap'
import { diceOf } from './faults/scenario.ts'
import { changingSource } from './store/changing-source.ts'
import { recordCommands, WAYS, wrongAfter } from './store/powercut.ts'
import { someOf } from './store/replay.ts'

const CUTS = 15
/** Of the cuts, every so manieth is followed by a pull. */
const HEAL_EVERY = 7

const seed = Number(process.env['SEED'] ?? Date.now() % 1_000_000)

for (const way of WAYS)
  t.test(`a power cut at any write leaves a whole clone: ${way.name}`, async t => {
    t.comment(`seed ${seed}`)
    const dice = diceOf(seed)
    await using source = await changingSource(['vda', 'vdb'])
    await using recorded = await recordCommands(source, way, dice)
    t.ok(recorded.cuts.length > 10 * CUTS, `${recorded.cuts.length} writes to cut at`)
    for (const [index, cut] of someOf(recorded.cuts, CUTS, dice).entries())
      t.strictSame(
        await wrongAfter(recorded, cut, index % HEAL_EVERY === 0),
        [],
        `cut at ${cut.at}`,
      )
  })
