// A process to be killed: it rolls a clone back and forth between its first and its last generation until then.

import { NOBODY } from '../../client/attempt.ts'
import { openPool } from '../../client/copy/pool.ts'
import { soundGenerations } from '../../client/store/generation.ts'
import { layoutOf } from '../../client/store/layout.ts'
import { planRollback, rollback } from '../../client/store/rollback.ts'
import { readState } from '../../client/store/state.ts'

const layout = layoutOf(process.argv[2] ?? '')
const working = { pool: openPool(1), signal: new AbortController().signal, watcher: NOBODY }
for (;;)
  for (const at of [0, -1]) {
    const target = (await soundGenerations(layout.dir)).at(at)
    if (!target) throw new Error('no generation')
    const plan = await planRollback(layout, target, target.generation.seq)
    await rollback(layout, await readState(layout), plan, working)
  }
