// Retention: what the keep policy wants and why, what prune may never remove, and that it works where nothing else can write.

import t, { type Test } from 'tap'
import assert from 'node:assert/strict'
import { closeSync, openSync, writeSync } from 'node:fs'
import { readdir, readlink, writeFile } from 'node:fs/promises'
import path from 'node:path'
import fc from 'fast-check'
import { parseConfig } from '../../shared/config.ts'
import { pruneCommand } from '../../client/commands/prune.ts'
import { cloneConfig, type CloneConfig } from '../../client/config/effective.ts'
import { standbySchema } from '../../client/config/schema.ts'
import { pruneText } from '../../client/render-generations.ts'
import { claim } from '../../client/store/claims.ts'
import { markDamaged } from '../../client/store/damage.ts'
import { soundGenerations } from '../../client/store/generation.ts'
import { keepReasons, type KeepPolicy } from '../../client/store/keep.ts'
import { layoutOf } from '../../client/store/layout.ts'
import { planPrune, type Candidate } from '../../client/store/prune.ts'
import { makeClone, publishOne } from '../client/fake-clone.ts'
import { aMedium } from '../client/medium.ts'

const NONE: KeepPolicy = { last: 2, hourly: 0, daily: 0, weekly: 0, monthly: 0 }

const one = (seq: number, instant: string, damaged = false): Candidate => ({
  id: `g${seq}`,
  seq,
  instant,
  damaged,
})
/** Generations in order, by instant. */
const series = (...instants: string[]): Candidate[] =>
  instants.map((instant, at) => one(at + 1, instant))

const TABLE: [what: string, policy: Partial<KeepPolicy>, instants: string[], kept: object][] = [
  ['nothing yet', {}, [], {}],
  [
    'the newest by number',
    {},
    ['2026-11-18T03:00Z', '2026-11-19T03:00Z', '2026-11-20T03:00Z'],
    {
      g2: 'last 2 of 2',
      g3: 'last 1 of 2',
    },
  ],
  ['fewer than are wanted', { last: 9 }, ['2026-11-20T03:00Z'], { g1: 'last 1 of 9' }],
  [
    'a policy of zero keeps the newest all the same',
    { last: 0 },
    ['2026-11-19T03:00Z', '2026-11-20T03:00Z'],
    {
      g2: 'last 1 of 1',
    },
  ],
  [
    'the newest of each hour',
    { last: 1, hourly: 2 },
    ['2026-11-20T01:59Z', '2026-11-20T02:00Z', '2026-11-20T02:59Z', '2026-11-20T03:00Z'],
    { g3: 'hourly 2026-11-20T02', g4: 'last 1 of 1, hourly 2026-11-20T03' },
  ],
  [
    'the newest of each day that has one: an empty day takes no place',
    { last: 1, daily: 3 },
    ['2026-11-10T03:00Z', '2026-11-10T23:59:59.999Z', '2026-11-18T00:00Z', '2026-11-20T03:00Z'],
    { g2: 'daily 2026-11-10', g3: 'daily 2026-11-18', g4: 'last 1 of 1, daily 2026-11-20' },
  ],
  [
    'weeks begin on Monday and belong to the year of their Thursday',
    { last: 1, weekly: 9 },
    // Sunday, Monday of week 1 though in December, Sunday of week 53, Monday.
    ['2024-12-29T12:00Z', '2024-12-30T00:00Z', '2027-01-03T23:59Z', '2027-01-04T00:00Z'],
    {
      g1: 'weekly 2024-W52',
      g2: 'weekly 2025-W01',
      g3: 'weekly 2026-W53',
      g4: 'last 1 of 1, weekly 2027-W01',
    },
  ],
  [
    'months, and several rules for one',
    { last: 1, daily: 1, monthly: 2 },
    ['2026-09-30T03:00Z', '2026-10-31T23:59Z', '2026-11-01T00:00Z', '2026-11-20T03:00Z'],
    { g2: 'monthly 2026-10', g4: 'last 1 of 1, daily 2026-11-20, monthly 2026-11' },
  ],
  [
    'a clock that went back: order is by seq, a place in the grid is lost at most',
    { last: 1, daily: 2 },
    ['2026-11-19T03:00Z', '2026-11-20T03:00Z', '2026-11-01T03:00Z'],
    { g2: 'daily 2026-11-20', g3: 'last 1 of 1, daily 2026-11-01' },
  ],
  [
    'a clock that was in the future for a while',
    { last: 1, daily: 2 },
    ['2026-11-19T03:00Z', '2099-01-01T03:00Z', '2026-11-20T03:00Z'],
    { g2: 'daily 2099-01-01', g3: 'last 1 of 1, daily 2026-11-20' },
  ],
  [
    'a clock that stood still',
    { last: 1, hourly: 5 },
    ['2026-11-20T03:00Z', '2026-11-20T03:00Z', '2026-11-20T03:00Z'],
    { g3: 'last 1 of 1, hourly 2026-11-20T03' },
  ],
]
for (const [what, policy, instants, kept] of TABLE)
  t.test(`keep: ${what}`, t => {
    const generations = series(...instants)
    const reasons = (list: Candidate[]): object =>
      Object.fromEntries(keepReasons(list, { ...NONE, ...policy }))
    t.strictSame(reasons(generations.toReversed()), kept, 'whatever order they come in')
    t.end()
  })

const ids = (list: readonly { id: string }[]): string[] => list.map(({ id }) => id)

t.test(
  'what is held stays, damaged ones are not counted and go when older than all that is kept',
  t => {
    const day = (seq: number, damaged = false): Candidate =>
      one(seq, `2026-11-0${seq}T03:00Z`, damaged)
    const all = [day(1), day(2), day(3), day(4)]
    const held = planPrune(
      all,
      NONE,
      new Map([
        ['g2', 'claimed: test'],
        ['g4', 'in use'],
      ]),
    )
    t.strictSame(ids(held.remove), ['g1'])
    t.strictSame(held.spared, [{ id: 'g2', seq: 2, why: 'claimed: test' }])
    t.strictSame(ids(held.keep), ['g3', 'g4'])
    const some = [day(1, true), day(2), day(3, true), day(4), day(5, true)]
    t.strictSame(ids(planPrune(some, NONE).remove), ['g1'])
    t.strictSame(ids(planPrune(some, { ...NONE, last: 1 }).remove), ['g1', 'g2', 'g3'])
    t.strictSame(ids(planPrune([day(1, true), day(2, true)], NONE).remove), [], 'all are damaged')
    t.strictSame(planPrune([], NONE), { keep: [], remove: [], spared: [] })
    t.end()
  },
)

t.test('whatever the policy, the clocks and the damage: what must stay stays', t => {
  const count = fc.nat({ max: 5 })
  const policies = fc.record({
    last: count,
    hourly: count,
    daily: count,
    weekly: count,
    monthly: count,
  })
  const instants = fc.oneof(
    fc.date({ min: new Date('2026-01-01'), max: new Date('2026-03-01'), noInvalidDate: true }),
    fc.date({ min: new Date('1970-01-01'), max: new Date('2199-01-01'), noInvalidDate: true }),
  )
  const stores = fc.array(
    fc.record({
      instant: instants,
      damaged: fc.boolean(),
      held: fc.boolean(),
      gap: fc.nat({ max: 2 }),
    }),
    { maxLength: 60 },
  )
  const property = fc.property(policies, stores, (policy, store) => {
    let seq = 0
    const candidates = store.map(({ instant, damaged, gap }) =>
      one((seq += 1 + gap), instant.toISOString(), damaged),
    )
    const holds = new Map(
      candidates.filter((_, at) => store[at]?.held).map(({ id }) => [id, 'held'] as const),
    )
    const plan = planPrune(candidates, policy, holds)
    const good = candidates.filter(({ damaged }) => !damaged)
    const kept = new Set(ids(plan.keep))

    const told = [...plan.keep, ...plan.remove, ...plan.spared]
    assert.deepEqual(ids(told).sort(), ids(candidates).sort(), 'each is told once')
    for (const { why } of told) assert.ok(why)
    for (const { id } of good.slice(-Math.max(1, policy.last)))
      assert.ok(kept.has(id), 'the newest')
    for (const { id } of plan.remove) assert.ok(!holds.has(id), 'never a held one')
    if (good.length === 0) assert.deepEqual(plan.remove, [], 'nothing goes where nothing is good')
    for (const rule of ['hourly', 'daily', 'weekly', 'monthly'] as const) {
      const periods = plan.keep.flatMap(({ why }) => why.match(new RegExp(`${rule} \\S+`)) ?? [])
      assert.ok(periods.length <= policy[rule], `at most ${rule}`)
      assert.equal(new Set(periods).size, periods.length, 'one of each period')
    }
    const left = candidates.filter(({ id }) => !plan.remove.some(gone => gone.id === id))
    assert.deepEqual(planPrune(left, policy, holds).remove, [], 'pruned once is pruned')
  })
  fc.assert(property, { numRuns: 300 })
  t.pass('300 stores')
  t.end()
})

const standby = (keep: string): string =>
  `sources: { a: { transport: unix } }\ndefaults: { keep: ${keep} }\n` +
  'groups: { db: { keep: { daily: 7 } } }\ndomains: { d: { source: a, group: db, keep: { monthly: 12 } } }\n'

t.test('keep merges key by key over the layers', t => {
  const { keep } = cloneConfig(
    parseConfig('standby.yaml', standby('{ hourly: 24, daily: 1 }'), standbySchema),
    'd',
  )
  t.strictSame(keep, { last: 3, hourly: 24, daily: 7, weekly: 0, monthly: 12 })
  t.end()
})

for (const [keep, says] of [
  ['{ last: 0 }', 'keep.last is at least 2'],
  ['{ last: 0, daily: 7 }', 'keep.last is at least 2'],
  ['{ last: 1 }', 'keep.last is at least 2'],
  ['{ last: -1 }', 'keep.last is at least 2'],
  ['{ last: 0, hourly: 0, daily: 0, weekly: 0, monthly: 0 }', 'keep.last is at least 2'],
  ['{ daily: -1 }', 'daily: how many to keep is 0 (none) or more'],
  ['{ yearly: 1 }', 'yearly: unknown key'],
] as const)
  t.test(`keep: ${keep} is refused with one sentence`, t => {
    t.throws(() => parseConfig('standby.yaml', standby(keep), standbySchema), {
      code: 'USAGE',
      message: new RegExp(
        `^standby\\.yaml:2: defaults\\.keep\\..*${says.replace(/[()]/g, '\\$&')}.*$`,
      ),
    })
    t.end()
  })

async function aClone(t: Test, parent?: string): Promise<CloneConfig> {
  return { ...(await makeClone(t, parent)), keep: NONE }
}

t.test(
  'a dry run says what would go and why the others stay; then prune does just that',
  async t => {
    const clone = await aClone(t)
    for (const seq of [1, 2, 3, 4, 5, 6]) await publishOne(clone.dir, seq)
    const [first, second] = await soundGenerations(clone.dir)
    if (!first || !second) throw new Error('no generations')
    await claim(first, 'test-boot')
    await markDamaged(second.dir, ['vda: gone'])
    await writeFile(
      path.join(layoutOf(clone.dir).generations, '20260101T000000Z-0000'),
      'not a folder',
    )
    const told = (await pruneCommand(clone, true)).keep.length
    t.equal(told, 2)
    const plan = await pruneCommand(clone, true)
    t.equal((await soundGenerations(clone.dir)).length, 6)
    t.equal(
      pruneText('mydomain', plan, true).replaceAll(/ \d{8}T\d{6}Z-/g, ' '),
      [
        'mydomain: would remove 0002 (seq 2): beyond keep: last 2',
        'mydomain: would remove 0003 (seq 3): beyond keep: last 2',
        'mydomain: would remove 0004 (seq 4): beyond keep: last 2',
        'mydomain: spared 0001 (seq 1): claimed: test-boot',
        `mydomain: spared 0000: ${plan.spared.at(-1)?.why ?? '?'}`,
        'mydomain: keeps 0005 (seq 5): last 2 of 2',
        'mydomain: keeps 0006 (seq 6): last 1 of 2',
      ].join('\n'),
    )
    t.match(plan.spared.at(-1)?.why, 'generation.json: ENOTDIR')
    t.strictSame(await pruneCommand(clone, false), plan)
    const left = (await soundGenerations(clone.dir)).map(({ generation }) => generation.seq)
    t.strictSame(left, [1, 5, 6])
  },
)

for (const type of ['ext4', 'xfs'] as const)
  t.test(`prune frees space on a full ${type}, where nothing can be written any more`, async t => {
    const medium = await aMedium(t, type)
    const clone = await aClone(t, medium)
    for (let seq = 1; seq <= 12; seq++) await publishOne(clone.dir, seq, 1024 * 1024)
    // Locked before, as every clone was, by one whose name could not be written.
    await writeFile(layoutOf(clone.dir).lock, '')
    fill(path.join(medium, 'filler'))
    await t.rejects(writeFile(path.join(medium, 'more'), 'x'.repeat(5000)), { code: 'ENOSPC' })
    const plan = await pruneCommand(clone, false)
    t.equal(plan.remove.length, 10)
    const { staging, current } = layoutOf(clone.dir)
    t.strictSame(await readdir(staging), [])
    t.equal((await soundGenerations(clone.dir)).length, 2)
    t.match(await readlink(current), /-0012$/)
    await writeFile(path.join(medium, 'more'), 'x'.repeat(5000))
  })

/** Takes every block that an ordinary file can get, down to the last. */
function fill(file: string): void {
  const fd = openSync(file, 'a')
  for (let size = 1024 * 1024; size >= 512;) {
    try {
      writeSync(fd, Buffer.alloc(size, 1))
    } catch {
      size /= 2
    }
  }
  closeSync(fd)
}
