// Listening on a unix socket or on TCP, and the end of it.

import { chmod, lstat, rm } from 'node:fs/promises'
import type { Server, Socket } from 'node:net'
import type { Cleanup } from '../../shared/cleanup.ts'
import { Failure } from '../../shared/failures.ts'

async function removeSocket(path: string): Promise<void> {
  const found = await lstat(path).catch(() => undefined)
  if (found && !found.isSocket())
    throw new Failure('USAGE', `cannot listen on ${path}: it is there and is no socket`)
  await rm(path, { force: true })
}

/**
 * Listens until the cleanup, on a unix socket that is for us alone, or on TCP; ends what is open then.
 * @throws Failure USAGE when it cannot
 */
export async function listen(
  server: Server,
  address: string | { host: string; port: number },
  cleanup: Cleanup,
): Promise<void> {
  const path = typeof address === 'string' ? address : undefined
  // The lock says that no other serve lives, so a socket file that is there was left by a killed one.
  if (path !== undefined) await removeSocket(path)
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) => {
      const where = typeof address === 'string' ? address : `${address.host}:${address.port}`
      reject(
        new Failure('USAGE', `cannot listen on ${where}: ${error.code ?? error.message}`, {
          cause: error,
        }),
      )
    })
    server.listen(
      typeof address === 'string' ? { path: address } : { host: address.host, port: address.port },
      resolve,
    )
  })
  if (path !== undefined) await chmod(path, 0o600)
  const open = new Set<Socket>()
  server.on('connection', (socket: Socket) => {
    open.add(socket)
    socket.once('close', () => open.delete(socket))
  })
  cleanup.defer(async () => {
    const closed = new Promise<void>(resolve => server.close(() => resolve()))
    for (const socket of open) socket.destroy()
    await closed
  })
}
