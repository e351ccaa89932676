// An exchange that was cut short is ended by whatever command comes next, before that looks at anything.

import t, { type Test } from 'tap'
import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { cp, rm } from 'node:fs/promises'
import path from 'node:path'
import { NOBODY, type Watcher } from '../../client/attempt.ts'
import { claimCommand, releaseCommand } from '../../client/commands/claim.ts'
import { exportCommand } from '../../client/commands/export.ts'
import { pruneCommand } from '../../client/commands/prune.ts'
import { rollbackCommand } from '../../client/commands/rollback.ts'
import { tidy } from '../../client/commands/tidy.ts'
import { verifyCommand } from '../../client/commands/verify.ts'
import { cloneConfig, type CloneConfig } from '../../client/config/effective.ts'
import { standbySchema } from '../../client/config/schema.ts'
import { openPool } from '../../client/copy/pool.ts'
import { claim } from '../../client/store/claims.ts'
import { publishInPlace } from '../../client/store/exchange.ts'
import { soundGenerations } from '../../client/store/generation.ts'
import { layoutOf, makeFolders, type Layout } from '../../client/store/layout.ts'
import { readState } from '../../client/store/state.ts'
import {
  aDisk,
  bytesOf,
  changed,
  currentOf,
  idOf,
  publishAll,
  stage,
} from '../client/generations.ts'
import { aMedium } from '../client/medium.ts'

const never = new AbortController().signal
const store = await aMedium(t, 'ext4', 256)
const pool = openPool(1)
t.teardown(() => pool[Symbol.asyncDispose]())

const first = aDisk(4, 512)
const second = changed(first, 0, 2, { zero: 3 })
const third = changed(second, 1, 2)
const [ONE, TWO, THREE] = [first, second, third].map(bytes => ({ vda: { bytes } }))
if (!ONE || !TWO || !THREE) throw new Error('three generations')

function cloneOf(name: string): CloneConfig {
  const config = standbySchema.parse({
    store,
    sources: { alpha: { transport: 'unix' } },
    domains: { [name]: { source: 'alpha', keep: { last: 2 } } },
  })
  return cloneConfig(config, name)
}

/** The step that the journal in a folder is at. */
const stepIn = (dir: string): unknown =>
  (JSON.parse(readFileSync(path.join(dir, 'undo.json'), 'utf8')) as { step: unknown }).step

/** A clone of two generations into which a third is being published, copied as it is in the middle of each step. */
async function cutShort(): Promise<ReadonlyMap<string, string>> {
  const layout = layoutOf(cloneOf('whole').dir)
  await makeFolders(layout)
  await publishAll(layout, [ONE ?? {}, TWO ?? {}], pool)
  await stage(layout, 3, THREE ?? {}, [{ id: idOf(2), contents: TWO ?? {} }])
  const found = new Map<string, string>()
  const watcher: Watcher = {
    ...NOBODY,
    progress: () => {
      const step = String(stepIn(layout.dir))
      const dir = path.join(store, `cut-${step}`)
      found.set(step, dir)
      execFileSync('rm', ['-rf', dir])
      execFileSync('cp', ['-a', layout.dir, dir])
    },
  }
  const after = { ...(await readState(layout)), lastSeq: 3 }
  await publishInPlace(layout, idOf(3), after, { pool, signal: never, watcher })
  return found
}

const snapshots = await cutShort()
t.strictSame([...snapshots.keys()], ['saving', 'patching'])

type Command = (clone: CloneConfig) => Promise<unknown>
const COMMANDS: Record<string, Command> = {
  verify: async clone => {
    // Whatever was found would have been recorded as damage.
    const { sound } = await verifyCommand(clone, '1', never, NOBODY)
    if (!sound) throw new Error('damaged')
  },
  repair: clone => verifyCommand(clone, undefined, never, NOBODY, 'repair'),
  export: clone => {
    const to = path.join(store, `${path.basename(clone.dir)}-taken`)
    return exportCommand(clone, { generation: undefined, format: undefined, to }, never, NOBODY)
  },
  claim: clone => claimCommand(clone, '2', 'test'),
  release: clone => releaseCommand(clone, '1', 'held'),
  prune: clone => pruneCommand(clone, false),
  rollback: clone => rollbackCommand(clone, 'newest', false, never, NOBODY),
  status: tidy,
}

async function checkBack(t: Test, layout: Layout): Promise<void> {
  t.notOk(existsSync(layout.undo), 'the exchange is ended')
  t.equal(await currentOf(layout), 2, 'current is there again')
  for (const { generation, damaged } of await soundGenerations(layout.dir)) {
    const { seq } = generation
    t.equal(damaged, undefined, `${seq} is undamaged`)
    const want = seq === 1 ? first : second
    t.ok((await bytesOf(layout, seq, 'vda')).equals(want), `${seq} is what it was`)
  }
}

for (const [name, command] of Object.entries(COMMANDS))
  t.test(name, async t => {
    for (const [step, dir] of snapshots) {
      const clone = cloneOf(`${name}-${step}`)
      const layout = layoutOf(clone.dir)
      await cp(dir, clone.dir, { recursive: true })
      t.teardown(() => rm(clone.dir, { recursive: true }))
      if (name === 'release') {
        const [oldest] = await soundGenerations(clone.dir)
        if (!oldest) throw new Error('no generation')
        await claim(oldest, 'held')
      }
      await command(clone)
      await checkBack(t, layout)
    }
  })
