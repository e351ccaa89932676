// Where a part of a chunk goes into an image: every byte of the part once, in order, as what it is.

import fc from 'fast-check'
import t from 'tap'
import { pieces } from '../client/copy/pieces.ts'
import type { Extent } from '../shared/grain-set.ts'

const CHUNK = 64

/** Disjoint runs in order, from marks on a chunk of 64 bytes. */
function runsOf(marks: readonly boolean[]): Extent[] {
  const runs: [number, number][] = []
  for (const [at, marked] of marks.entries()) {
    const last = runs.at(-1)
    if (marked && last && last[0] + last[1] === at) last[1]++
    else if (marked) runs.push([at, 1])
  }
  return runs
}

t.test('a part is written where it has data, and zeros where it has none', t => {
  t.strictSame(
    [
      ...pieces(
        [8, 16],
        [
          [0, 10],
          [12, 4],
          [40, 8],
        ],
      ),
    ],
    [
      { kind: 'data', offset: 8, length: 2 },
      { kind: 'zeros', offset: 10, length: 2 },
      { kind: 'data', offset: 12, length: 4 },
      { kind: 'zeros', offset: 16, length: 8 },
    ],
  )
  t.strictSame([...pieces([0, 4], [])], [{ kind: 'zeros', offset: 0, length: 4 }])
  t.strictSame([...pieces([0, 4], [[0, 64]])], [{ kind: 'data', offset: 0, length: 4 }])
  t.end()
})

t.test('every byte of a part once, and none outside of it', t => {
  const marks = fc.array(fc.boolean(), { minLength: CHUNK, maxLength: CHUNK })
  const part = fc.tuple(fc.nat(CHUNK - 1), fc.integer({ min: 1, max: CHUNK }))
  fc.assert(
    fc.property(marks, part, (marks, [offset, count]) => {
      const length = Math.min(count, CHUNK - offset)
      const image = new Array<string>(CHUNK).fill('')
      for (const piece of pieces([offset, length], runsOf(marks)))
        for (let at = piece.offset; at < piece.offset + piece.length; at++)
          image[at] = `${image[at] ?? ''}${piece.kind}`
      const inside = (at: number): boolean => at >= offset && at < offset + length
      const expected = marks.map((data, at) => (inside(at) ? (data ? 'data' : 'zeros') : ''))
      if (JSON.stringify(image) !== JSON.stringify(expected))
        throw new Error(`${image.join()} instead of ${expected.join()}`)
    }),
    { seed: 1, numRuns: 500 },
  )
  t.end()
})
