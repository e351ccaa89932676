// What serve tells the service manager: ready, what it is doing, that it is alive, that it stops and needs time. Node has no
// datagram sockets, so systemd's own systemd-notify says it. Without NOTIFY_SOCKET nothing is ever started.

import { toFailure } from '../../shared/failures.ts'
import { reasonOf, run } from '../../shared/host/run.ts'
import type { Log } from '../../shared/log.ts'

/** A stop is given this much longer each time that serve shows itself while it merges. */
const EXTEND_MS = 120_000
const STOPPING_EVERY_MS = 10_000
const SEND_MS = 10_000

export interface Notify {
  /** Clients can connect. */
  ready(): void
  /** The loop goes round. Call it at each turn, and from nowhere else: the watchdog hears of it, and of nothing else. */
  alive(): void
  /** serve stops: until `close`, more time is asked for again and again. */
  stopping(): void
  /** Returns when all that was said is sent. */
  close(): Promise<void>
}

type Environment = Readonly<Record<string, string | undefined>>

/** How often to say WATCHDOG=1, in ms: half of what the manager allows; undefined when it does not watch this process. */
export function watchdogInterval(env: Environment, pid: number): number | undefined {
  const allowed = Number(env['WATCHDOG_USEC'])
  const forUs = env['WATCHDOG_PID'] === undefined || env['WATCHDOG_PID'] === String(pid)
  return forUs && Number.isFinite(allowed) && allowed > 0 ? allowed / 1000 / 2 : undefined
}

const SILENT: Notify = {
  ready: () => undefined,
  alive: () => undefined,
  stopping: () => undefined,
  close: () => Promise.resolve(),
}

/**
 * @param env of this process: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID as sd_notify(3) has them
 * @param describe one line on what serve does; it is asked at each turn, and told when it changes
 */
export function createNotify(env: Environment, log: Log, describe: () => Promise<string>): Notify {
  if (env['NOTIFY_SOCKET'] === undefined || env['NOTIFY_SOCKET'] === '') return SILENT
  const interval = watchdogInterval(env, process.pid)
  let last = Promise.resolve()
  let failed = false
  let said = ''
  let asking = false
  let stopping = false
  let toldAt = -Infinity
  let timer: NodeJS.Timeout | undefined

  /** One after another, so that they arrive in the order in which they were true. */
  function send(...words: readonly string[]): void {
    last = last
      .then(async () => {
        const result = await run('systemd-notify', words, { timeoutMs: SEND_MS })
        if (result.exitCode === 0 || failed) return
        failed = true
        log.warn({ reason: reasonOf(result) }, 'the service manager could not be told')
      })
      .catch(unexpected)
  }

  function unexpected(error: unknown): void {
    log.error({ error: toFailure(error) }, 'unexpected')
  }

  /** Never holds up the loop: what it says comes from disk, and a disk may hang. */
  function tellStatus(): void {
    if (asking) return
    asking = true
    describe()
      .then(text => {
        const status = stopping ? `stopping; ${text}` : text
        if (status === said) return
        said = status
        send(`STATUS=${status}`)
      })
      .catch(unexpected)
      .finally(() => (asking = false))
  }

  function askForTime(): void {
    send(
      `EXTEND_TIMEOUT_USEC=${EXTEND_MS * 1000}`,
      ...(interval === undefined ? [] : ['WATCHDOG=1']),
    )
    tellStatus()
  }

  return {
    ready: () => send('READY=1'),
    alive() {
      tellStatus()
      const now = performance.now()
      if (interval === undefined || now - toldAt < interval) return
      toldAt = now
      send('WATCHDOG=1')
    },
    stopping() {
      stopping = true
      send('STOPPING=1')
      askForTime()
      timer = setInterval(askForTime, Math.min(STOPPING_EVERY_MS, interval ?? STOPPING_EVERY_MS))
    },
    async close() {
      clearInterval(timer)
      await last
    },
  }
}
