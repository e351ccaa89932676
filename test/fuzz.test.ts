// The fuzzed properties with a fixed seed and a fixed number of runs; `npm run fuzz` runs them as long as one likes.

import fc from 'fast-check'
import { rmSync, mkdtempSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import t from 'tap'
import { properties } from './fuzz/properties.ts'

const SEED = 20261127

const dir = mkdtempSync(path.join(tmpdir(), 'nbd-clone-fuzz-'))
t.teardown(() => rmSync(dir, { recursive: true, force: true }))

for (const { name, property, runs } of properties(dir))
  t.test(name, async t => {
    const details = await fc.check(property, { seed: SEED, numRuns: runs })
    t.notOk(details.failed, fc.defaultReportMessage(details) ?? 'it holds')
    t.equal(details.numRuns, runs, 'all of it ran')
  })
