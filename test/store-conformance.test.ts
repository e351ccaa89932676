// Every kind of store, held to the same behaviours. Run as built (`npm run build`): compiled once, not for each thread.

import t from 'tap'
import { built, PLAIN } from './store/built.ts'

for (const kind of [
  'reflink on XFS',
  'copy on ext4',
  'in place on ext4',
  'in place on a block device',
])
  void t.spawn(
    process.execPath,
    [built('conformance-run'), kind],
    { env: PLAIN, timeout: 300_000 },
    kind,
  )
