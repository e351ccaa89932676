// serve's own socket: one line that names the role, then JSON-RPC with the words of that role.

import { createServer, type Server, type Socket } from 'node:net'
import type { Log } from '../../shared/log.ts'
import { rpcConnection } from '../../shared/rpc.ts'
import type { MessageConnection } from 'vscode-jsonrpc/node.js'
import { roleLine, type Role } from './words.ts'

const ROLE_BYTES = 1024
const ROLE_MS = 5000

/** @param attach registers the handlers for a role */
export function controlServer(
  log: Log,
  attach: (role: Role, connection: MessageConnection) => void,
): Server {
  return createServer(socket => {
    socket.on('error', error => log.debug({ error: error.message }, 'control connection lost'))
    readRole(socket).then(
      role => {
        const connection = rpcConnection(socket, socket)
        connection.onError(([error]) => log.debug({ error: error.message }, 'control connection'))
        connection.onClose(() => {
          connection.dispose()
          socket.destroy()
        })
        attach(role, connection)
        connection.listen()
        socket.resume()
      },
      (error: unknown) => {
        log.warn({ reason: String(error) }, 'control connection refused')
        socket.destroy()
      },
    )
  })
}

/** Reads the first line and puts back what follows it. */
function readRole(socket: Socket): Promise<Role> {
  return new Promise((resolve, reject) => {
    let got = Buffer.alloc(0)
    const timer = setTimeout(() => done(new Error('said nothing')), ROLE_MS)
    const done = (error?: Error, role?: Role): void => {
      clearTimeout(timer)
      socket.off('data', onData).off('close', onClose)
      if (role) resolve(role)
      else reject(error ?? new Error('went away'))
    }
    const onClose = (): void => done()
    const onData = (chunk: Buffer): void => {
      got = Buffer.concat([got, chunk])
      const end = got.indexOf(10)
      if (end === -1 && got.length <= ROLE_BYTES) return
      if (end === -1 || end > ROLE_BYTES) {
        done(new Error('no role line'))
        return
      }
      socket.pause()
      try {
        const role = roleLine.parse(JSON.parse(got.subarray(0, end).toString()))
        socket.unshift(got.subarray(end + 1))
        done(undefined, role)
      } catch {
        done(new Error('not a role line'))
      }
    }
    socket.on('data', onData).on('close', onClose)
  })
}
