// npm run fuzz -- --seconds 600 --seed N: every property in turn, again and again with the next seed, until the time is over.

import fc from 'fast-check'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { properties } from './properties.ts'

const { values } = parseArgs({
  options: {
    seconds: { type: 'string', default: '60' },
    seed: { type: 'string', default: String(Date.now() % 2 ** 31) },
  },
})
const end = performance.now() + Number(values.seconds) * 1000
const first = Number(values.seed)
if (!Number.isSafeInteger(first) || !(end > 0)) throw new Error('--seconds and --seed are numbers')
const dir = mkdtempSync(path.join(tmpdir(), 'nbd-clone-fuzz-'))
let runs = 0
let seed = first
try {
  for (; performance.now() < end && process.exitCode === undefined; seed++)
    for (const { name, property } of properties(dir)) {
      const left = end - performance.now()
      if (left <= 0) break
      const details = await fc.check(property, {
        seed,
        numRuns: 1000,
        interruptAfterTimeLimit: left,
        markInterruptAsFailure: false,
      })
      runs += details.numRuns
      if (!details.failed) continue
      console.error(`${name}: seed ${seed}\n${fc.defaultReportMessage(details)}`)
      process.exitCode = 1
    }
  console.log(`${runs} runs, seeds ${first} to ${seed - 1}`)
} finally {
  rmSync(dir, { recursive: true, force: true })
}
