// What serve tells the service manager, by a real datagram socket and the real systemd-notify.

import { spawn } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as delay } from 'node:timers/promises'
import { pino } from 'pino'
import t, { type Test } from 'tap'
import { createNotify, watchdogInterval } from '../server/serve/notify.ts'
import { summarise } from '../server/serve/summary.ts'
import { ROOT } from './lab/names.ts'

const RECEIVER = path.join(ROOT, 'test', 'lab', 'notify-receiver.pl')
const log = pino({ level: 'silent' })

/** A manager that listens, and what it was told. */
async function manager(
  t: Test,
): Promise<{ socket: string; told: string[]; until: (line: string) => Promise<void> }> {
  // A socket's path may have 107 bytes, fewer than a fixture's directory.
  const directory = mkdtempSync(path.join(tmpdir(), 'nbd-clone-test-'))
  const socket = path.join(directory, 'notify.sock')
  const child = spawn('perl', [RECEIVER, socket], { stdio: ['ignore', 'pipe', 'inherit'] })
  t.teardown(() => {
    child.kill()
    rmSync(directory, { recursive: true })
  })
  const told: string[] = []
  createInterface(child.stdout).on('line', line => {
    told.push(line)
  })
  const until = async (line: string): Promise<void> => {
    const end = Date.now() + 15_000
    while (!told.includes(line)) {
      if (Date.now() > end) throw new Error(`not told ${line}, but ${told.join(', ')}`)
      await delay(20)
    }
  }
  await until('LISTENING')
  return { socket, told, until }
}

t.test('ready, status, life and the stop arrive in that order', async t => {
  const { socket, told, until } = await manager(t)
  process.env['NOTIFY_SOCKET'] = socket
  t.teardown(() => delete process.env['NOTIFY_SOCKET'])
  let doing = '1 domain; no session'
  const notify = createNotify(
    { NOTIFY_SOCKET: socket, WATCHDOG_USEC: '400000', WATCHDOG_PID: String(process.pid) },
    log,
    async () => doing,
  )
  notify.ready()
  notify.alive()
  await until('STATUS=1 domain; no session')
  notify.alive()
  await delay(20)
  doing = '1 domain; frozen: web'
  notify.alive()
  await until('STATUS=1 domain; frozen: web')
  doing = '1 domain; merging: web'
  notify.stopping()
  await until('STATUS=stopping; 1 domain; merging: web')
  await delay(500)
  await notify.close()
  await until('STOPPING=1')
  const extensions = told.filter(line => line === 'EXTEND_TIMEOUT_USEC=120000000').length
  t.ok(extensions > 1, 'more time is asked for as long as it takes')
  t.equal(told.filter(line => line === 'STATUS=1 domain; no session').length, 1, 'only changes')
  t.ok(told.indexOf('READY=1') < told.indexOf('WATCHDOG=1'))
  t.ok(told.indexOf('WATCHDOG=1') < told.indexOf('STOPPING=1'))
  const quiet = told.length
  await delay(500)
  t.equal(told.length, quiet, 'after the end nothing is said any more')
})

t.test('the watchdog hears at half of its time, and only of turns of the loop', async t => {
  const { socket, told, until } = await manager(t)
  process.env['NOTIFY_SOCKET'] = socket
  t.teardown(() => delete process.env['NOTIFY_SOCKET'])
  const notify = createNotify(
    { NOTIFY_SOCKET: socket, WATCHDOG_USEC: '1000000' },
    log,
    async () => 'busy',
  )
  for (let turn = 0; turn < 20; turn++) notify.alive()
  await until('WATCHDOG=1')
  await notify.close()
  t.equal(told.filter(line => line === 'WATCHDOG=1').length, 1, 'twenty turns at once are one')
  await delay(1200)
  t.equal(told.filter(line => line === 'WATCHDOG=1').length, 1, 'no turn, no word')
  notify.alive()
  await notify.close()
  await delay(200)
  t.equal(told.filter(line => line === 'WATCHDOG=1').length, 2)
})

t.test('a status that cannot be read does not keep the loop or the watchdog waiting', async t => {
  const { socket, until } = await manager(t)
  process.env['NOTIFY_SOCKET'] = socket
  t.teardown(() => delete process.env['NOTIFY_SOCKET'])
  const notify = createNotify(
    { NOTIFY_SOCKET: socket, WATCHDOG_USEC: '1000000' },
    log,
    () => new Promise(() => undefined),
  )
  notify.alive()
  await until('WATCHDOG=1')
  await notify.close()
})

t.test('without a socket nothing is asked and nothing is started', async t => {
  let asked = 0
  const directory = mkdtempSync(path.join(tmpdir(), 'nbd-clone-test-'))
  t.teardown(() => rmSync(directory, { recursive: true }))
  const fake = path.join(directory, 'systemd-notify')
  writeFileSync(fake, `#!/bin/sh\ntouch ${directory}/started\n`, { mode: 0o755 })
  const before = process.env['PATH']
  process.env['PATH'] = `${directory}:${before ?? ''}`
  t.teardown(() => (process.env['PATH'] = before))
  const notify = createNotify({ WATCHDOG_USEC: '1000' }, log, async () => `${asked++}`)
  notify.ready()
  notify.alive()
  notify.stopping()
  await delay(100)
  await notify.close()
  t.equal(asked, 0)
  t.notOk(existsSync(path.join(directory, 'started')))
})

t.test('a manager that cannot be told is warned of once, and harms nothing', async t => {
  const lines: string[] = []
  const noted = pino({ level: 'warn' }, { write: (line: string) => lines.push(line) > 0 })
  process.env['NOTIFY_SOCKET'] = '/nonexistent/notify.sock'
  t.teardown(() => delete process.env['NOTIFY_SOCKET'])
  const notify = createNotify(process.env, noted, async () => 'x')
  notify.ready()
  notify.alive()
  notify.ready()
  await notify.close()
  t.equal(lines.length, 1)
  t.match(lines[0], /the service manager could not be told/)
})

t.test('the watchdog is served at half of its time, if it watches this process', async t => {
  t.equal(watchdogInterval({ WATCHDOG_USEC: '60000000' }, 7), 30_000)
  t.equal(watchdogInterval({ WATCHDOG_USEC: '60000000', WATCHDOG_PID: '7' }, 7), 30_000)
  t.equal(watchdogInterval({ WATCHDOG_USEC: '60000000', WATCHDOG_PID: '8' }, 7), undefined)
  t.equal(watchdogInterval({}, 7), undefined)
  t.equal(watchdogInterval({ WATCHDOG_USEC: 'soon' }, 7), undefined)
})

t.test('the status names the domains that are not quiet', async t => {
  t.equal(summarise(new Map([['web', 'idle']])), '1 domain; no session')
  t.equal(
    summarise(
      new Map([
        ['web', 'frozen'],
        ['db', 'needs operator'],
        ['mail', 'merging'],
        ['news', 'frozen'],
      ]),
    ),
    '4 domains; frozen: web, news; merging: mail; needs operator: db',
  )
})
