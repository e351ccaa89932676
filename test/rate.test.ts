// Limits in bytes per second: what may go when, on a clock of its own, and a short while on the real one.

import t from 'tap'
import { createRate, paid, waitOf } from '../shared/rate.ts'

const never = new AbortController().signal

t.test('takes wait for what was taken before, and a pause earns a quarter of a second', t => {
  const LIMIT = 1000
  const table: [at: number, bytes: number, wait: number, what: string][] = [
    [0, 500, 0, 'the first goes at once'],
    [0, 100, 500, 'the next waits for all of it'],
    [600, 250, 0, 'which is paid by then'],
    [600, 1, 150, 'and so on, less what the 100 ms since then earned'],
    [10_000, 2000, 0, 'after a pause'],
    [10_000, 1, 1750, 'a burst of 250 was earned, and not 9000'],
  ]
  let bucket = { owed: 0, at: 0 }
  for (const [at, bytes, wait, what] of table) {
    bucket = paid(bucket, at, LIMIT)
    t.equal(waitOf(bucket, LIMIT), wait, what)
    if (wait === 0) bucket = { ...bucket, owed: bucket.owed + bytes }
  }
  t.end()
})

t.test('in the long run the limit is kept to the byte', t => {
  let now = 0
  let bucket = { owed: 0, at: 0 }
  let gone = 0
  while (now < 3_600_000) {
    bucket = paid(bucket, now, 20e6)
    now += waitOf(bucket, 20e6)
    bucket = paid(bucket, now, 20e6)
    bucket = { ...bucket, owed: bucket.owed + 1024 * 1024 }
    gone += 1024 * 1024
  }
  t.ok(Math.abs(gone / (20e6 * 3600) - 1) < 0.001, `${gone} bytes in an hour`)
  t.end()
})

t.test('all who take share one limit, in the order in which they came', async t => {
  const rate = createRate(() => 4e6)
  const began = performance.now()
  const order: number[] = []
  await Promise.all(
    Array.from({ length: 8 }, (_, at) => rate.take(200_000, never).then(() => order.push(at))),
  )
  const seconds = (performance.now() - began) / 1000
  t.strictSame(order, [0, 1, 2, 3, 4, 5, 6, 7])
  t.ok(seconds > 0.3, `7 of 8 takes were waited for: ${seconds} s`)
})

t.test('without a limit nobody waits, and a limit that is lifted lets go who waits', async t => {
  let limit: number | undefined = 1000
  const rate = createRate(() => limit)
  await rate.take(1_000_000, never)
  const waiting = rate.take(1, never)
  limit = undefined
  await waiting
  await rate.take(1e12, never)
  await rate.take(1e12, never)
  t.pass('nobody waited for a quarter of an hour')
})

t.test('who gives up is let go at once, and does not keep the next one', async t => {
  let limit: number | undefined = 10
  const rate = createRate(() => limit)
  await rate.take(1000, never)
  const abort = new AbortController()
  const waiting = rate.take(10, abort.signal)
  abort.abort(new Error('enough'))
  await t.rejects(waiting, { message: 'enough' })
  limit = undefined
  await rate.take(10, never)
})
