// The TLS listener: accepts, and gives each connection to a process of its own. serve sees no byte of it. What a client
// may cost before it has shown who it is, is bounded here: in number, and in time.

import { spawn, type ChildProcess } from 'node:child_process'
import { createServer, type Server, type Socket } from 'node:net'
import { fileURLToPath } from 'node:url'
import type { Log } from '../../shared/log.ts'
import { watchEnds } from './ends.ts'
import type { TlsFiles } from './paths.ts'
import { tlsWord, type TlsJob } from './words.ts'

export interface TlsListener {
  readonly server: Server
  /** How many processes run, and how many of their clients have not been admitted; for tests and logs. */
  counts(): { running: number; unknown: number; waiting: number }
  /** Ends every connection; resolves when their processes are gone. */
  closeAll(): Promise<void>
}

/** Clients that have not shown who they are, at once: each costs a process of some 50 MB. */
const MAX_UNKNOWN = 16
/** Connections in all, those included that wait for their turn. */
const MAX_CONNECTIONS = 64
/** So long until serve admits a client whose turn it is. */
const ADMISSION_MS = 10_000
/** So long a client may wait for its turn: longer than those before it may take, so that it comes, and the process ends. */
const TURN_MS = 15_000
/** As for plain TCP: quiet for so long, the kernel asks whether the peer is there. */
const KEEPALIVE_MS = 10_000

interface Running {
  readonly child: ChildProcess
  readonly ended: Promise<void>
}

/**
 * Not listening yet. Certificates that cannot be used end it here; those that end, or have ended, are only warned of.
 * @param serveSocket where the processes ask for admission. @param files read by them for each connection
 * @throws Failure USAGE naming the file
 */
export async function listenTls(
  serveSocket: string,
  files: TlsFiles,
  log: Log,
): Promise<TlsListener> {
  const stopWatching = await watchEnds(files, log)
  const running = new Set<Running>()
  const waiting: { socket: Socket; peer: string; late: NodeJS.Timeout }[] = []
  let unknown = 0
  let closing = false

  function accept(socket: Socket): void {
    const peer = socket.remoteAddress?.replace(/^::ffff:/, '') ?? 'gone'
    socket.on('error', () => undefined)
    if (closing || running.size + waiting.length >= MAX_CONNECTIONS) {
      log.warn({ peer, connections: running.size }, 'too many TLS connections, one refused')
      socket.destroy()
      return
    }
    socket.setKeepAlive(true, KEEPALIVE_MS)
    const late = setTimeout(() => {
      log.warn({ peer }, 'too many TLS clients that do not say who they are, one refused')
      waiting.splice(
        waiting.findIndex(one => one.socket === socket),
        1,
      )
      socket.destroy()
    }, TURN_MS)
    waiting.push({ socket, peer, late })
    startNext()
  }

  function startNext(): void {
    while (unknown < MAX_UNKNOWN && !closing) {
      const next = waiting.shift()
      if (!next) return
      clearTimeout(next.late)
      // It is paused, so one that has gone meanwhile is found out by its process.
      if (!next.socket.destroyed) start(next.socket, next.peer)
    }
  }

  /** From here on the connection is its process's; it leaves the unknown ones once, by admission or by its end. */
  function start(socket: Socket, peer: string): void {
    unknown++
    let isUnknown = true
    const known = (): void => {
      if (!isUnknown) return
      isUnknown = false
      clearTimeout(late)
      unknown--
      startNext()
    }
    const child = startProcess(socket)
    const late = setTimeout(() => {
      log.warn(
        { peer },
        `a TLS client that was not admitted within ${ADMISSION_MS / 1000} s is ended`,
      )
      child.kill('SIGKILL')
    }, ADMISSION_MS)
    let said = ''
    child.stderr?.on('data', (chunk: Buffer) => (said = (said + chunk.toString()).slice(-2000)))
    child.on('message', message => {
      const word = tlsWord.safeParse(message).data
      if (word?.kind === 'admitted') {
        log.info({ peer, client: word.client }, 'TLS client admitted')
        known()
      } else log.warn({ peer, client: word?.client, reason: word?.reason }, 'TLS client refused')
    })
    const ended = new Promise<void>(resolve => {
      child.on('exit', (code, signal) => {
        log.debug({ peer, how: signal ?? code, said: said.trim().split('\n').at(-1) }, 'TLS ended')
        resolve()
      })
      child.on('error', error => {
        if (child.pid !== undefined) return
        log.error({ peer, error: error.message }, 'a process for TLS could not be started')
        resolve()
      })
    })
    const one = { child, ended }
    running.add(one)
    void ended.then(() => {
      running.delete(one)
      known()
    })
    const job: TlsJob = { peer, serveSocket, files }
    if (child.connected) child.send(job, () => undefined)
  }

  return {
    server: createServer({ pauseOnConnect: true, noDelay: true }, accept),
    counts: () => ({ running: running.size, unknown, waiting: waiting.length }),
    async closeAll() {
      closing = true
      stopWatching()
      for (const { socket, late } of waiting.splice(0)) {
        clearTimeout(late)
        socket.destroy()
      }
      for (const { child } of running) child.kill('SIGKILL')
      await Promise.all([...running].map(({ ended }) => ended))
    },
  }
}

/** It dies with us, and can gain no right that we do not have. */
function startProcess(socket: Socket): ChildProcess {
  const name = import.meta.url.endsWith('.ts') ? './process.ts' : './process.js'
  const file = fileURLToPath(new URL(name, import.meta.url))
  const node = [process.execPath, ...process.execArgv, file]
  const child = spawn('setpriv', ['--pdeathsig', 'KILL', '--no-new-privs', '--', ...node], {
    stdio: [socket, 'ignore', 'pipe', 'ipc'],
  })
  // The child has its own copy; ours would keep the connection open after its end.
  socket.destroy()
  return child
}
