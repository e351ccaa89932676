// What every kind of store does alike: the behaviours that each of them is held to.

import { execa } from 'execa'
import { randomBytes } from 'node:crypto'
import path from 'node:path'
import type { Test } from 'tap'
import { Failure } from '../../shared/failures.ts'
import { altered, changingSource, withContent, type Disks } from './changing-source.ts'
import { fill, flip, inPhase, ODD, someDisks } from './mishaps.ts'
import { aStandby, type Ran, type Standby } from './standby.ts'
import { currentOf, generationsIn, wrongIn } from './truth.ts'

const MIB = 1024 * 1024
const TARGETS = ['vda', 'vdb', 'vdc']

export interface Kind {
  readonly name: string
  /** Settings of the domain that make it so. */
  readonly settings: readonly string[]
  /** A pull while an older generation is selected: goes on and leaves `current`, or is refused. */
  readonly pullsRolledBack: boolean
  /** A fresh folder for the clones. */
  store(t: Test): Promise<string>
  /** Settings of a block device for vda. */
  device?(t: Test): Promise<string[]>
}

/** What a test of a kind has at hand. */
interface Stand {
  readonly t: Test
  readonly kind: Kind
  readonly store: string
  readonly standby: Standby
  readonly settings: readonly string[]
  /** Pulls what the source has from now on; it must succeed and be right. @returns the recovery point, and bytes written */
  pull(disks: Disks): Promise<{ id: string; written: number }>
  /** A command that must end with this status. */
  readonly ends: (code: number, command: string, ...more: readonly string[]) => Promise<Ran>
}

export interface Behaviour {
  readonly name: string
  run(stand: Stand): Promise<void>
}

/** Runs behaviours, each on a store of its own. @param only parts of their names; none for all of them */
export function conforms(t: Test, kind: Kind, only: readonly string[] = []): void {
  for (const part of only)
    if (!BEHAVIOURS.some(({ name }) => name.includes(part)))
      throw new Error(`no behaviour is called ${part}`)
  for (const behaviour of BEHAVIOURS)
    if (only.length === 0 || only.some(part => behaviour.name.includes(part)))
      t.test(`${kind.name}: ${behaviour.name}`, async t => behaviour.run(await stand(t, kind)))
}

async function stand(t: Test, kind: Kind): Promise<Stand> {
  const source = await changingSource(TARGETS)
  t.teardown(() => source[Symbol.asyncDispose]())
  const store = await kind.store(t)
  const settings = [...kind.settings, ...((await kind.device?.(t)) ?? [])]
  const standby = await aStandby(source, store, 'keep: { last: 5 }', ...settings)
  const ends: Stand['ends'] = async (code, command, ...more) => {
    const ran = await standby.quick({}, command, ...more)
    t.equal(ran.code, code, `clone ${[command, ...more].join(' ')}: ${ran.stderr}`)
    return ran
  }
  return {
    ...{ t, kind, store, standby, settings, ends },
    async pull(disks) {
      await source.become(disks)
      const { stdout } = await ends(0, 'pull')
      t.strictSame(await wrongNow(standby), [], 'current is what the source had')
      const { results } = JSON.parse(stdout) as {
        results: { recoveryPoint: string; bytes: { written: number } }[]
      }
      const [pulled] = results
      if (!pulled) throw new Error(`nothing was pulled: ${stdout}`)
      return { id: pulled.recoveryPoint, written: pulled.bytes.written }
    },
  }
}

async function wrongNow({ dir, source }: Standby): Promise<string[]> {
  if ((await currentOf(dir)) === undefined) return ['there is no current']
  return wrongIn(path.join(dir, 'current'), source.known)
}

/** Every generation verifies, and is what the source had when it is gone back to; and so is the newest after all that. */
async function holdsAll({ t, standby, ends }: Stand, ids: readonly string[]): Promise<void> {
  t.strictSame(await generationsIn(standby.dir), [...ids].sort())
  for (const id of ids) await ends(0, 'verify', id)
  for (const id of [...ids].reverse().slice(1)) {
    await ends(0, 'rollback', id)
    t.equal(await currentOf(standby.dir), id)
    t.strictSame(await wrongNow(standby), [], `${id} is what the source had`)
  }
  await ends(0, 'rollback', 'newest')
  t.equal(await currentOf(standby.dir), ids.at(-1))
  t.strictSame(await wrongNow(standby), [], 'the newest is as it was')
}

export const BEHAVIOURS: readonly Behaviour[] = [
  {
    name: 'a later pull writes what changed and nothing else',
    async run(stand) {
      const disks = someDisks()
      const first = await stand.pull(disks)
      const second = await stand.pull(altered(disks, 'vda', 0, 6))
      stand.t.equal(second.written, MIB + ODD, 'one whole chunk, and the last one')
      const third = await stand.pull(altered(disks, 'vda', 0, 6))
      stand.t.equal(third.written, 0)
      await holdsAll(stand, [first.id, second.id, third.id])
    },
  },
  {
    name: 'zeros over old data are zeros, whatever stands around them',
    async run(stand) {
      const disks = someDisks()
      const ids = [(await stand.pull(disks)).id]
      const shapes: readonly ((content: Buffer) => Buffer)[] = [
        content => Buffer.from(content).fill(0, 0, 2 * MIB),
        content => Buffer.from(content).fill(0, 0, content.length - 1),
        content => Buffer.from(content).fill(0, MIB),
        content => Buffer.alloc(content.length),
        content => content,
      ]
      for (const shape of shapes) ids.push((await stand.pull(withContent(disks, 'vda', shape))).id)
      await holdsAll(stand, ids.slice(1))
    },
  },
  {
    name: 'disks grow, shrink, come, go and change their format',
    async run(stand) {
      const disks = someDisks()
      const grown = withContent(disks, 'vda', content => Buffer.concat([content, randomBytes(MIB)]))
      const shrunk = withContent(grown, 'vda', content => content.subarray(0, 2 * MIB + ODD))
      const { vda, vdb } = shrunk
      if (!vda || !vdb) throw new Error('there are two disks')
      const added = { ...shrunk, vdc: { format: 'raw' as const, content: randomBytes(2 * MIB) } }
      const removed = { vda, vdc: added.vdc }
      const other = { ...removed, vdc: { format: 'qcow2' as const, content: added.vdc.content } }
      await stand.standby.configure('keep: { last: 9 }', ...stand.settings)
      const ids: string[] = []
      for (const one of [disks, grown, shrunk, added, removed, other])
        ids.push((await stand.pull(one)).id)
      await holdsAll(stand, ids)
    },
  },
  {
    name: 'a claimed generation outlives those around it',
    async run(stand) {
      const { t, standby, ends, settings } = stand
      let disks = someDisks()
      const ids: string[] = []
      for (let chunk = 0; chunk < 5; chunk++) {
        disks = altered(disks, 'vda', chunk)
        ids.push((await stand.pull(disks)).id)
      }
      const [claimed = ''] = ids
      await ends(0, 'claim', claimed, 'test-boot')
      await standby.configure('keep: { last: 2 }', ...settings)
      await ends(0, 'prune')
      t.strictSame(await generationsIn(standby.dir), [claimed, ...ids.slice(-2)].sort())
      for (const id of [claimed, ...ids.slice(-2)]) await ends(0, 'verify', id)
      await ends(0, 'release', claimed, 'test-boot')
      await holdsAll(stand, [claimed, ...ids.slice(-2)])
      await ends(0, 'prune')
      await holdsAll(stand, ids.slice(-2))
      t.strictSame(await wrongNow(standby), [])
    },
  },
  {
    name: 'pruning keeps the newest ones, whole',
    async run(stand) {
      let disks = someDisks()
      const ids: string[] = []
      for (let chunk = 0; chunk < 4; chunk++) {
        disks = altered(disks, 'vda', chunk, 6)
        ids.push((await stand.pull(disks)).id)
      }
      await stand.standby.configure('keep: { last: 2 }', ...stand.settings)
      await stand.ends(0, 'prune')
      await holdsAll(stand, ids.slice(-2))
    },
  },
  {
    name: 'a clone that shows an older generation is pulled into only where that costs nothing',
    async run(stand) {
      const { t, standby, ends, kind } = stand
      const disks = someDisks()
      const first = await stand.pull(disks)
      const second = await stand.pull(altered(disks, 'vda', 1))
      await ends(0, 'rollback', first.id)
      await ends(kind.pullsRolledBack ? 0 : 31, 'pull')
      t.equal(await currentOf(standby.dir), first.id, 'current stays')
      t.strictSame(await wrongNow(standby), [])
      await ends(0, 'rollback', 'newest')
      const third = await stand.pull(altered(disks, 'vda', 2))
      const ids = await generationsIn(standby.dir)
      t.strictSame(
        [first, second, third].filter(({ id }) => !ids.includes(id)),
        [],
        'all are there',
      )
      await holdsAll(stand, ids)
    },
  },
  {
    name: 'a pull that is interrupted or killed leaves all as it was, and the next one is right',
    async run(stand) {
      const { t, standby } = stand
      const disks = someDisks()
      const first = await stand.pull(disks)
      const second = await stand.pull(altered(disks, 'vda', 1))
      const third = altered(disks, 'vda', 0, 1, 5)
      await standby.source.become(third)
      for (const phase of ['copy', 'verify'] as const) {
        const abort = new AbortController()
        const stop = () => abort.abort(new Failure('INTERRUPTED', 'interrupted by SIGINT'))
        const handling = { signal: abort.signal, watcher: inPhase(phase, stop) }
        const { code } = await standby.quick(handling, 'pull')
        t.equal(code, 130, phase)
        t.strictSame(await wrongNow(standby), [])
      }
      await standby.source.fake.serveNbd(['--filter=delay', 'rdelay=200ms'])
      const killed = standby.start('pull')
      while (!standby.source.fake.calls.slice(-3).includes('session.info')) await pause(20)
      await pause(100)
      killed.kill('SIGKILL')
      t.equal((await killed.ended).code, 137)
      await standby.source.fake.serveNbd()
      await holdsAll(stand, [first.id, second.id])
      await holdsAll(stand, [first.id, second.id, (await stand.pull(third)).id])
    },
  },
  {
    name: 'an older generation is exported with the bytes it had',
    async run(stand) {
      const { t, standby, ends, store } = stand
      const disks = someDisks()
      const first = await stand.pull(disks)
      const second = await stand.pull(altered(disks, 'vda', 1, 3))
      for (const { id } of [first, second]) {
        const folder = path.join(store, `export-${id}`)
        await ends(0, 'export', id, '--to', folder)
        t.strictSame(await wrongIn(folder, standby.source.known), [])
      }
      await holdsAll(stand, [first.id, second.id])
    },
  },
  {
    name: 'a bit that flips in an image or a manifest is found, and such a generation is never current',
    async run(stand) {
      const { t, kind, standby, ends } = stand
      const disks = someDisks()
      const first = await stand.pull(disks)
      for (const name of ['vdb.raw', 'vdb.manifest']) {
        const bad = await stand.pull(altered(disks, 'vda', 1))
        await flip(path.join(standby.dir, 'generations', bad.id, name))
        await ends(21, 'verify', bad.id)
        t.not(await currentOf(standby.dir), bad.id, `${name}: not shown any more`)
        const next = await stand.pull(altered(disks, 'vda', 2))
        await ends(0, 'verify', next.id)
      }
      // In place the older ones have their bytes in that very image.
      if (kind.pullsRolledBack) await ends(0, 'verify', first.id)
    },
  },
  {
    name: 'a file system that fills up is exit 22, and the next pull heals',
    async run(stand) {
      const { t, standby, store } = stand
      const disks = someDisks()
      const first = await stand.pull(disks)
      const all = withContent(disks, 'vda', content => randomBytes(content.length))
      await standby.source.become(all)
      for (const phase of ['copy', 'verify'] as const) {
        const watcher = inPhase(phase, () => fill(store))
        const { code, stderr } = await standby.quick({ watcher }, 'pull')
        await execa('rm', ['-f', path.join(store, 'ballast'), path.join(store, 'rest')])
        t.equal(code, 22, `${phase}: ${stderr}`)
        await standby.quick({}, 'status')
        // Where the end came after the publish, the newer one is current.
        t.strictSame(await wrongNow(standby), [], phase)
      }
      const last = await stand.pull(all)
      const ids = await generationsIn(standby.dir)
      t.ok(ids.includes(first.id) && ids.at(-1) === last.id, 'the first is there, and the last')
      await holdsAll(stand, ids)
    },
  },
]

const pause = (ms: number): Promise<void> => new Promise(resolve => setTimeout(resolve, ms))
