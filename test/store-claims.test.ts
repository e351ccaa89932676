// Claims: durable, by purpose, any file counts; those of processes that are gone are stale. What reads generations shows them.

import t, { type Test } from 'tap'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, readdir, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { Cleanup } from '../shared/cleanup.ts'
import { processStart } from '../shared/host/process.ts'
import { claimCommand, releaseCommand } from '../client/commands/claim.ts'
import { pruneCommand } from '../client/commands/prune.ts'
import type { CloneConfig } from '../client/config/effective.ts'
import { claimsOf, claimReason, removeStaleClaims, withClaim } from '../client/store/claims.ts'
import { soundGenerations, type Sound } from '../client/store/generation.ts'
import { lockClone } from '../client/store/guard.ts'
import { layoutOf } from '../client/store/layout.ts'
import { idOf, makeClone, publishOne } from './client/fake-clone.ts'

/** A clone of four generations, which keeps two. */
async function four(t: Test): Promise<{ clone: CloneConfig; first: Sound }> {
  const made = await makeClone(t)
  const clone = { ...made, keep: { ...made.keep, last: 2 } }
  for (const seq of [1, 2, 3, 4]) await publishOne(clone.dir, seq)
  const [first] = await soundGenerations(clone.dir)
  if (!first) throw new Error('nothing published')
  return { clone, first }
}
const seqs = async (clone: CloneConfig): Promise<number[]> =>
  (await soundGenerations(clone.dir)).map(({ generation }) => generation.seq)

t.test('a claimed generation outlives prune until its last claim is released', async t => {
  const { clone, first } = await four(t)
  const { dir, ...claimed } = await claimCommand(clone, '1', 'test-boot')
  t.strictSame(claimed, { clone: 'mydomain', id: idOf(1), seq: 1, purpose: 'test-boot' })
  t.equal(dir, first.dir)
  await claimCommand(clone, idOf(1), 'export')
  t.equal(await claimReason(first.dir), 'claimed: export, test-boot')
  t.match(await pruneCommand(clone, false), {
    remove: [{ seq: 2 }],
    spared: [{ seq: 1, why: 'claimed: export, test-boot' }],
  })
  await releaseCommand(clone, '1', 'export')
  t.match((await pruneCommand(clone, false)).spared, [{ why: 'claimed: test-boot' }])
  await releaseCommand(clone, '1', 'test-boot')
  t.strictSame(await claimsOf(first.dir), [])
  t.match((await pruneCommand(clone, false)).remove, [{ seq: 1 }])
  t.strictSame(await seqs(clone), [3, 4])
})

t.test('mistakes with claims are refused, each with its reason', async t => {
  const { clone } = await four(t)
  await claimCommand(clone, '1', 'test-boot')
  await t.rejects(claimCommand(clone, '1', 'test-boot'), {
    code: 'UNSAFE',
    message: `generation ${idOf(1)} is claimed for test-boot already`,
  })
  await t.rejects(claimCommand(clone, '9', 'x'), {
    code: 'USAGE',
    message: 'mydomain has no generation 9',
  })
  await t.rejects(releaseCommand(clone, '2', 'test-boot'), {
    code: 'USAGE',
    message: `generation ${idOf(2)} is not claimed for test-boot`,
  })
  for (const purpose of ['../../current', '', 'a b', '.hidden', 'x'.repeat(101)])
    for (const command of [claimCommand, releaseCommand])
      await t.rejects(
        command(clone, '1', purpose),
        { code: 'USAGE', message: /a name is/ },
        purpose,
      )
  const unlock = lockClone(layoutOf(clone.dir), 'pull')
  await t.rejects(claimCommand(clone, '2', 'x'), { code: 'LOCKED' })
  await t.rejects(releaseCommand(clone, '1', 'test-boot'), { code: 'LOCKED' })
  unlock()
})

t.test('any file is a claim, whatever is in it, and so is what cannot be looked at', async t => {
  const { clone, first } = await four(t)
  const folder = path.join(first.dir, 'claims')
  await mkdir(folder)
  t.equal(await claimReason(first.dir), undefined, 'an empty folder claims nothing')
  await writeFile(path.join(folder, 'touched'), '')
  await writeFile(path.join(folder, 'torn'), '{"schema":1,"purp')
  await writeFile(path.join(folder, 'other'), '{"schema":2,"pid":1}')
  await writeFile(path.join(folder, 'two words'), 'yes')
  await mkdir(path.join(folder, 'a-folder'))
  t.equal(await claimReason(first.dir), 'claimed: a-folder, other, torn, touched, two words')
  await removeStaleClaims([first])
  t.equal((await claimsOf(first.dir)).length, 5)
  await releaseCommand(clone, '1', 'touched')
  await releaseCommand(clone, '1', 'torn')
  t.equal((await claimsOf(first.dir)).length, 3)

  const second = (await soundGenerations(clone.dir))[1]?.dir ?? ''
  await writeFile(path.join(second, 'claims'), 'a file where the folder should be')
  t.match(await claimReason(second), /^claimed: .*claims cannot be read: ENOTDIR$/)
})

t.test(
  'a claim for the life of a process goes with the cleanup, and is seen through when killed',
  async t => {
    const { clone, first } = await four(t)
    {
      await using cleanup = new Cleanup()
      await withClaim(first, 'export', cleanup)
      t.match(await claimsOf(first.dir), [
        { name: `export-${process.pid}`, text: `export (process ${process.pid})`, stale: false },
      ])
      t.match((await pruneCommand(clone, false)).spared, [
        { seq: 1, why: /claimed: export \(process/ },
      ])
      await t.rejects(releaseCommand(clone, '1', `export-${process.pid}`), { code: 'UNSAFE' })
    }
    t.strictSame(await readdir(path.join(first.dir, 'claims')), [])

    const holder = spawn('sleep', ['100'])
    const { pid = 0 } = holder
    const start = await processStart(pid)
    const file = path.join(first.dir, 'claims', `export-${pid}`)
    const at = new Date().toISOString()
    await writeFile(file, JSON.stringify({ schema: 1, purpose: 'export', at, pid, start }))
    t.match(await claimsOf(first.dir), [{ stale: false }])
    holder.kill('SIGKILL')
    await once(holder, 'exit')
    t.match(await claimsOf(first.dir), [{ stale: true }])
    t.equal(await claimReason(first.dir), undefined)
    await claimCommand(clone, '1', 'next')
    t.strictSame(
      await readdir(path.join(first.dir, 'claims')),
      ['next'],
      'the next command removes it',
    )

    const ours = { schema: 1, purpose: 'export', at, pid: process.pid, start: '1' }
    await writeFile(file, JSON.stringify(ours))
    t.match(await claimReason(first.dir), 'claimed: next', 'our process id, but of another process')
  },
)

t.test('a process that claims again after one of the same id died takes its place', async t => {
  const { first } = await four(t)
  const folder = path.join(first.dir, 'claims')
  await mkdir(folder)
  await writeFile(path.join(folder, `export-${process.pid}`), '{}')
  await using cleanup = new Cleanup()
  await withClaim(first, 'export', cleanup)
  t.match(await claimsOf(first.dir), [{ pid: process.pid, stale: false }])
})
