// Whoever has gone is ended by the kernel's word, also while it waits for its turn. A real process holds a real socket.

import t from 'tap'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createConnection, createServer, type Socket } from 'node:net'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { pino } from 'pino'
import { createReaper, newConnection, type Connection } from '../server/serve/reaper.ts'
import { temporary } from './nbd/fake-server.ts'
import { requires } from './nbd/requires.ts'

const log = pino({ level: 'silent' })

/** A client, and a connection whose nbd-server hangs: `sleep`, with the client's socket as its file descriptor 0. */
async function hanging(t: Parameters<typeof temporary>[0]) {
  const at = join(temporary(t), 'nbd.sock')
  const listener = createServer({ pauseOnConnect: true }).listen(at)
  t.teardown(() => listener.close())
  await once(listener, 'listening')
  const accepted = once(listener, 'connection') as Promise<[Socket]>
  const client = createConnection(at)
  t.teardown(() => client.destroy())
  const [socket] = await accepted
  const child = spawn('sleep', ['60'], { stdio: [socket, 'ignore', 'ignore'] })
  socket.destroy()
  const exit = once(child, 'exit')
  t.teardown(() => child.kill('SIGKILL'))
  const server: Connection['server'] = {
    pid: child.pid,
    isRunning: () => child.exitCode === null && child.signalCode === null,
    async kill() {
      child.kill('SIGKILL')
      await exit
    },
    ended: exit.then(() => undefined),
  }
  const traffic = { look: () => Promise.resolve(), bytes: () => 0 }
  return { client, connection: newConnection(server, traffic, { peer: 'unix', client: undefined }) }
}

t.test('who waits for a session', { skip: requires('ss') }, async t => {
  for (const [what, state] of [
    ['in a session', { idleSince: Infinity }],
    ['whose prerun waits for its turn', { waiting: 1 }],
  ] as const)
    t.test(
      `a connection ${what} is left alone while its client is there, and ended after it`,
      async t => {
        const { client, connection } = await hanging(t)
        Object.assign(connection, state)
        const tick = createReaper(log, new Map([['one', connection]]))
        for (let second = 0; second < 6; second++) {
          await tick()
          await delay(1000)
        }
        t.ok(connection.server.isRunning(), 'left alone')
        client.destroy()
        for (const end = Date.now() + 10_000; Date.now() < end && connection.server.isRunning();) {
          await tick()
          await delay(200)
        }
        t.notOk(connection.server.isRunning(), 'ended')
      },
    )
})
