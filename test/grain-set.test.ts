// Sets of grains: what is marked is in them, to the grain.

import t from 'tap'
import fc from 'fast-check'
import { GRAIN, grainSet } from '../shared/grain-set.ts'

t.test('extents are whole grains, joined, and end with the disk', async t => {
  const set = grainSet(10 * GRAIN + 5)
  set.mark(1, 1)
  set.mark(GRAIN, GRAIN)
  set.mark(9 * GRAIN + 1, GRAIN)
  t.strictSame(
    [...set.extents()],
    [
      [0, 2 * GRAIN],
      [9 * GRAIN, GRAIN + 5],
    ],
  )
  t.equal(set.bytes(), 3 * GRAIN + 5)
  t.strictSame([...set.extents(GRAIN + 3, 2 * GRAIN)], [[GRAIN + 3, GRAIN - 3]])
  t.notOk(set.touches(2 * GRAIN, 7 * GRAIN))
  t.ok(set.touches(2 * GRAIN, 7 * GRAIN + 1))
  t.throws(() => set.mark(10 * GRAIN, 6), RangeError)
})

t.test('it knows what an array of grains knows', async t => {
  const mark = fc.tuple(fc.nat(99), fc.integer({ min: 1, max: 30 }))
  fc.assert(
    fc.property(fc.array(mark), marks => {
      const set = grainSet(100 * GRAIN)
      const plain = new Array<boolean>(100).fill(false)
      for (const [first, count] of marks) {
        const end = Math.min(100, first + count)
        set.mark(first * GRAIN, (end - first) * GRAIN)
        plain.fill(true, first, end)
      }
      const told = new Array<boolean>(100).fill(false)
      for (const [offset, length] of set.extents())
        told.fill(true, offset / GRAIN, (offset + length) / GRAIN)
      t.strictSame(told, plain)
    }),
    { seed: 6, numRuns: 200 },
  )
})
