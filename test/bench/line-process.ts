// A long line on one machine: a proxy that delays what goes through it, carries no more than a gigabit a second, and lets each
// connection have no more under way than TCP would. A process of its own: line-process.js PORT ONE-WAY-MS, prints its port.

import { connect, createServer, type AddressInfo, type Socket } from 'node:net'

/** Bytes a second in each direction, all connections together. */
const RATE = 125_000_000
/** What Linux lets a connection have under way by default: half of the largest tcp_rmem. */
const WINDOW = 3 * 1024 ** 2

const [target = 0, delayMs = 0] = process.argv.slice(2).map(Number)

/** What is due at a time, in order. */
const due: { at: number; run: () => void }[] = []
setInterval(() => {
  const now = performance.now()
  const ready = due.findIndex(({ at }) => at > now)
  for (const { run } of due.splice(0, ready === -1 ? due.length : ready)) run()
}, 1).unref()

function later(at: number, run: () => void): void {
  let place = due.length
  while (place > 0 && (due[place - 1]?.at ?? 0) > at) place--
  due.splice(place, 0, { at, run })
}

/** One direction of the line; its connections share the rate. */
function direction(): (from: Socket, to: Socket) => void {
  let free = 0
  return (from, to) => {
    let underWay = 0
    from.on('data', bytes => {
      const now = performance.now()
      free = Math.max(free, now) + (bytes.length / RATE) * 1000
      underWay += bytes.length
      if (underWay >= WINDOW) from.pause()
      later(free + delayMs, () => to.write(bytes))
      // Its acknowledgement comes back as late as it went.
      later(free + 2 * delayMs, () => {
        underWay -= bytes.length
        if (underWay < WINDOW) from.resume()
      })
    })
    from.on('end', () => later(Math.max(free, performance.now()) + delayMs, () => to.end()))
    from.on('error', () => to.destroy())
    from.on('close', () => later(Math.max(free, performance.now()) + delayMs, () => to.destroy()))
  }
}

const there = direction()
const back = direction()
const listener = createServer({ noDelay: true }, near => {
  const far = connect({ host: '127.0.0.1', port: target, noDelay: true })
  there(near, far)
  back(far, near)
})
listener.listen(0, '127.0.0.1', () => {
  process.stdout.write(`${(listener.address() as AddressInfo).port}\n`)
})
