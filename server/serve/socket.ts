// serve's own socket: one line that names the role, then JSON-RPC with the words of that role, or an NBD connection.

import { createServer, type Server, type Socket } from 'node:net'
import type { Log } from '../../shared/log.ts'
import { rpcConnection } from '../../shared/rpc.ts'
import type { MessageConnection } from 'vscode-jsonrpc/node.js'
import { roleLine, type Role, type RpcRole } from './words.ts'

export const ROLES: ReadonlySet<Role['role']> = new Set([
  'gate',
  'relay',
  'nbd',
  'hook',
  'operator',
])

/** What the gate command says. */
export const GATE_ROLES: ReadonlySet<Role['role']> = new Set(['gate', 'relay', 'nbd'])

const ROLE_BYTES = 1024
const ROLE_MS = 5000
/** What was said last has so long to go out. */
const LAST_WORDS_MS = 1000

export interface Attach {
  /** Registers the handlers for a role. @param end ends the connection */
  rpc(role: RpcRole, connection: MessageConnection, end: () => void): void
  /** Takes a socket over of which nothing but its role line was read, and which is paused. */
  nbd(ticket: string, socket: Socket): void
}

/** @param roles those that this socket is for; others are refused */
export function controlServer(log: Log, roles: ReadonlySet<Role['role']>, attach: Attach): Server {
  return createServer(socket => {
    socket.on('error', error => log.debug({ error: error.message }, 'control connection lost'))
    readRole(socket, roles).then(
      role => {
        if (role.role === 'nbd') {
          attach.nbd(role.ticket, socket)
          return
        }
        const connection = rpcConnection(socket, socket)
        connection.onError(([error]) => log.debug({ error: error.message }, 'control connection'))
        connection.onClose(() => {
          connection.dispose()
          socket.destroy()
        })
        attach.rpc(role, connection, () => {
          socket.destroySoon()
          setTimeout(() => socket.destroy(), LAST_WORDS_MS).unref()
        })
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

/** Reads the first line and puts back what follows it; nothing may follow that of an NBD connection. */
function readRole(socket: Socket, roles: ReadonlySet<Role['role']>): Promise<Role> {
  return new Promise((resolve, reject) => {
    let got = Buffer.alloc(0)
    // After the turn's reading, so that a serve that was busy for so long does not take that for silence.
    const late = (): void => void setImmediate(() => done(new Error('said nothing')))
    const timer = setTimeout(late, ROLE_MS)
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
      const role = parseRole(got.subarray(0, end).toString())
      const rest = got.subarray(end + 1)
      if (!role) done(new Error('not a role line'))
      else if (!roles.has(role.role)) done(new Error(`not the socket for ${role.role}`))
      else if (role.role === 'nbd' && rest.length > 0)
        // What we have read nbd-server cannot read any more.
        done(new Error('an NBD client spoke before its server'))
      else {
        if (rest.length > 0) socket.unshift(rest)
        done(undefined, role)
      }
    }
    socket.on('data', onData).on('close', onClose)
  })
}

function parseRole(line: string): Role | undefined {
  try {
    return roleLine.safeParse(JSON.parse(line)).data
  } catch {
    return undefined
  }
}
