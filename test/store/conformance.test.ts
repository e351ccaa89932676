// Kinds of stores, held to the same behaviours. Run as built (`npm run build`): compiled once, not for each thread. A sample of
// each, in which every behaviour is once; `npm run test:faults -- --only store-conformance` does them all.

import t from 'tap'
import { built, PLAIN } from './built.ts'

const SAMPLES: Readonly<Record<string, readonly string[]>> = {
  'reflink on XFS': ['a claimed generation', 'a bit that flips', 'an older generation is exported'],
  'copy on ext4': ['disks grow, shrink', 'pruning keeps'],
  'in place on ext4': [
    'a pull that is interrupted',
    'a file system that fills up',
    'pulled into only',
  ],
  'in place on a block device': ['a later pull', 'zeros over old data'],
}

for (const [kind, behaviours] of Object.entries(SAMPLES))
  void t.spawn(
    process.execPath,
    [built('conformance-run'), kind, ...behaviours],
    { env: PLAIN, timeout: 300_000 },
    kind,
  )
