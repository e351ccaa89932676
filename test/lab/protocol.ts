// What the lab's commands and its keeper say to each other, over the keeper's socket.

import { connect, createServer, type Server } from 'node:net'
import { z } from 'zod'
import { HOSTS, LOCK, STORES } from './names.ts'

export const hostRequest = z.object({ host: z.enum(HOSTS) })
export const bootRequest = hostRequest.extend({ guest: z.boolean() })

export const labStatus = z.object({
  keeper: z.number(),
  /** Process id of the owner with whom the lab goes; none: it stays until `down`. */
  owner: z.number().optional(),
  store: z.enum(STORES),
  state: z.enum(['building', 'up', 'failed', 'going down']),
  hosts: z.object({ source: z.boolean(), standby: z.boolean() }),
  /** Whether the guest's agent answers. */
  guest: z.boolean(),
})
export type LabStatus = z.infer<typeof labStatus>

export const downResult = z.object({ leftovers: z.array(z.string()) })

/** How the keeper is started: one JSON argument. */
export const keeperOptions = z.object({
  store: z.enum(STORES),
  owner: z.object({ pid: z.number(), started: z.string() }).optional(),
})
export type KeeperOptions = z.infer<typeof keeperOptions>

/** Takes a lock, by default the one that makes a lab the only one of its name. @returns undefined when another process has it */
export async function takeLock(name = LOCK): Promise<Server | undefined> {
  const server = createServer(socket => socket.destroy())
  return new Promise((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EADDRINUSE') resolve(undefined)
      else reject(error)
    })
    server.listen(name, () => resolve(server))
  })
}

/** Whether some process has the lock. */
export async function isLocked(): Promise<boolean> {
  return new Promise(resolve => {
    const socket = connect(LOCK)
    socket.once('connect', () => {
      socket.destroy()
      resolve(true)
    })
    socket.once('error', () => resolve(false))
  })
}
