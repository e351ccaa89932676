// The process that owns the lab: it holds the lock, answers on the socket, and ends the lab when it is told to, when
// its owner goes, or when whoever waits for the building goes.

import { appendFileSync } from 'node:fs'
import { mkdir } from 'node:fs/promises'
import { createServer, type Socket } from 'node:net'
import { describeFailure, Failure, toFailure } from '../../shared/failures.ts'
import { failureToResponse, rpcConnection } from '../../shared/rpc.ts'
import { Keeper } from './keeper.ts'
import { sweep } from './leftovers.ts'
import { BIG, CACHE, LOG, SOCKET, STATE } from './names.ts'
import { isAlive } from './processes.ts'
import { bootRequest, hostRequest, keeperOptions, takeLock } from './protocol.ts'

const OWNER_POLL_MS = 500
/** How long a client may take to hang up once the lab is down. */
const FAREWELL_MS = 1000

type Listener = (line: string) => void
const listeners = new Set<Listener>()

function log(line: string): void {
  try {
    appendFileSync(LOG, `${new Date().toISOString()} ${line}\n`)
  } catch {
    // The log has gone with the rest of the lab.
  }
}

function say(line: string): void {
  log(line)
  for (const listener of listeners) listener(line)
}

async function main(): Promise<void> {
  const options = keeperOptions.parse(JSON.parse(process.argv[2] ?? '{}'))
  // From the first moment on: an interrupted `up` must find a keeper that tidies up, not one that just dies.
  let stop = (reason: string): void => void (stopped = reason)
  let stopped: string | undefined
  for (const name of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.on(name, () => stop(name))
  if (!(await takeLock())) throw new Failure('LOCKED', 'another lab is up on this machine')
  // What a killed keeper left behind goes first.
  await sweep()
  await mkdir(STATE, { mode: 0o700 })
  await mkdir(BIG, { mode: 0o711 })
  await mkdir(CACHE, { recursive: true })

  const keeper = new Keeper(options, say)
  const server = createServer(socket => serve(socket, keeper, end))
  const bye = (status: number): void => {
    server.close(() => process.exit(status))
    setTimeout(() => process.exit(status), FAREWELL_MS)
  }
  const end = (reason: string): void => {
    log(reason)
    keeper.down().then(
      left => bye(left.length === 0 ? 0 : 1),
      () => bye(1),
    )
  }
  stop = end
  if (stopped !== undefined) end(stopped)
  keeper.built.catch((error: unknown) => {
    end(describeFailure('lab', error))
  })
  const { owner } = options
  if (owner)
    setInterval(() => {
      if (!isAlive(owner)) end(`the owner, process ${owner.pid}, is gone`)
    }, OWNER_POLL_MS)
  server.on('error', error => end(`no socket: ${error.message}`))
  server.listen(SOCKET)
}

function serve(socket: Socket, keeper: Keeper, end: (reason: string) => void): void {
  const connection = rpcConnection(socket, socket)
  const answer = (method: string, handler: (params: unknown) => unknown): void => {
    connection.onRequest(method, async (params: unknown) => {
      try {
        return (await handler(params)) ?? {}
      } catch (error) {
        return failureToResponse(error)
      }
    })
  }
  answer('built', async () => {
    const listener: Listener = line => {
      connection.sendNotification('say', line).catch(() => undefined)
    }
    listeners.add(listener)
    let waiting = true
    connection.onClose(() => {
      listeners.delete(listener)
      if (waiting) end('whoever waited for the lab is gone')
    })
    await keeper.built.finally(() => (waiting = false))
  })
  answer('status', () => keeper.status())
  answer('power-cut', params => keeper.powerCut(hostRequest.parse(params).host))
  answer('boot', params => {
    const { host, guest } = bootRequest.parse(params)
    return keeper.boot(host, guest)
  })
  answer('net-cut', () => keeper.cutNetwork())
  answer('net-heal', () => keeper.healNetwork())
  answer('down', async () => {
    end('asked to go down')
    return { leftovers: await keeper.down() }
  })
  connection.onError(() => undefined)
  connection.listen()
}

main().catch((error: unknown) => {
  log(describeFailure('lab', error))
  process.exit(toFailure(error).exit)
})
