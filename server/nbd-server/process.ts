// One nbd-server per connection: it gets the client's socket as fd 0, serves it, and ends with it.

import { spawn } from 'node:child_process'
import { mkdir, rm, writeFile } from 'node:fs/promises'
import type { Socket } from 'node:net'
import path from 'node:path'
import { Failure } from '../../shared/failures.ts'
import type { Log } from '../../shared/log.ts'

export interface NbdServer {
  readonly pid: number | undefined
  isRunning(): boolean
  /** SIGKILL, because nbd-server 3.24 ignores SIGTERM while it serves; resolves when it is gone. */
  kill(): Promise<void>
  /** Resolves when the process has ended. */
  readonly ended: Promise<void>
}

/**
 * Memory of one nbd-server, in bytes. 3.24 allocates what a read asks for, up to 4 GiB at once; a client that reads 32 MiB at a
 * time, as the NBD spec has it, needs a third of this.
 */
const MEMORY = 1024 ** 3

/**
 * Starts `nbd-server -d` on a client's socket (which must be paused and unread).
 * @throws Failure SOURCE_REFUSED when the client is gone, or has sent what nbd-server would not see
 * @param id connection id; its folder under `directory` holds the config
 */
export async function startNbdServer(
  directory: string,
  id: string,
  config: string,
  socket: Socket,
  log: Log,
): Promise<NbdServer> {
  const folder = path.join(directory, id)
  const file = path.join(folder, 'nbd-server.conf')
  await mkdir(folder, { recursive: true, mode: 0o700 })
  await writeFile(file, config, { mode: 0o600 })

  if (socket.destroyed || socket.readableLength > 0) {
    await rm(folder, { recursive: true, force: true })
    throw new Failure('SOURCE_REFUSED', 'the client went away, or spoke before its server')
  }
  // It dies with us, so that nobody reads a base that our successor is merging into.
  const command = ['nbd-server', '-d', '-C', file]
  const limited = ['prlimit', `--data=${MEMORY}`, '--', ...command]
  const child = spawn('setpriv', ['--pdeathsig', 'KILL', '--', ...limited], {
    stdio: [socket, 'ignore', 'pipe'],
    env: { PATH: process.env['PATH'], LC_ALL: 'C' },
  })
  // The child has its own copy; ours would keep the connection open after its end.
  socket.destroy()

  let running = true
  let said = ''
  child.stderr.on('data', (chunk: Buffer) => {
    said = (said + chunk.toString()).slice(-2000)
  })
  const ended = new Promise<void>(resolve => {
    const end = (how: string): void => {
      if (!running) return
      running = false
      log.debug({ connection: id, how, said: said.trim().split('\n').at(-1) }, 'nbd-server ended')
      void rm(folder, { recursive: true, force: true }).finally(resolve)
    }
    child.on('exit', (code, signal) => end(signal ?? `exit ${String(code)}`))
    child.on('error', error => {
      log.error({ connection: id, error: error.message }, 'nbd-server could not be started')
      end('not started')
    })
  })
  return {
    pid: child.pid,
    isRunning: () => running,
    async kill() {
      if (running) child.kill('SIGKILL')
      await ended
    },
    ended,
  }
}
