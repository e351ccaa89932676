// The one socket that is not for root alone: a group may open it, for gates and relays of clients with rights.

import { chmod, chown, mkdir, stat } from 'node:fs/promises'
import type { Server } from 'node:net'
import path from 'node:path'
import type { Cleanup } from '../../shared/cleanup.ts'
import { Failure } from '../../shared/failures.ts'
import { run } from '../../shared/host/run.ts'
import { listen } from './listen.ts'

/** Members of the group that open more than this are turned away; serve's own socket does not notice. */
const MOST_AT_ONCE = 256

/**
 * Listens for a group: the socket 0660 in a directory 0750, and the one above can be passed through.
 * @throws Failure USAGE when the group is not there, or the files cannot be given to it
 */
export async function listenForGates(
  server: Server,
  socket: string,
  group: string,
  cleanup: Cleanup,
): Promise<void> {
  const gid = await groupId(group)
  const directory = path.dirname(socket)
  try {
    await letThrough(path.dirname(directory), gid)
    await mkdir(directory, { recursive: true, mode: 0o700 })
    server.maxConnections = MOST_AT_ONCE
    await listen(server, socket, cleanup)
    // Ours alone until all of it is as it shall be.
    await chown(socket, 0, gid)
    await chmod(socket, 0o660)
    await chown(directory, 0, gid)
    await chmod(directory, 0o750)
  } catch (error) {
    if (error instanceof Failure) throw error
    const { code, message } = error as NodeJS.ErrnoException
    throw new Failure('USAGE', `cannot give ${directory} to group ${group}: ${code ?? message}`, {
      cause: error,
      remedy: 'serve needs CAP_CHOWN for listen.gate: see examples/systemd/clone-server.service',
    })
  }
}

/** A directory that others may pass through already is left as it is. */
async function letThrough(directory: string, gid: number): Promise<void> {
  const { mode, uid } = await stat(directory)
  if ((mode & 0o001) !== 0) return
  await chown(directory, uid, gid)
  await chmod(directory, (mode & 0o7700) | 0o010)
}

async function groupId(group: string): Promise<number> {
  const { stdout } = await run('getent', ['group', group])
  const id = stdout.split(':')[2]
  if (id !== undefined && /^\d+$/.test(id)) return Number(id)
  throw new Failure('USAGE', `listen.gate.group: there is no group ${group} on this host`, {
    remedy: `groupadd --system ${group}`,
  })
}
