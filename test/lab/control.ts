// Talking to the keeper: starting one, asking it for things, and cleaning up after one that was killed.

import { spawn } from 'node:child_process'
import { connect, type Socket } from 'node:net'
import { join } from 'node:path'
import { ResponseError } from 'vscode-jsonrpc/node.js'
import { Failure } from '../../shared/failures.ts'
import { responseToFailure, rpcConnection } from '../../shared/rpc.ts'
import { childEnvironment } from './environment.ts'
import { leftovers, sweep } from './leftovers.ts'
import { ROOT, SOCKET } from './names.ts'
import { readProcess, waitFor } from './processes.ts'
import {
  downResult,
  isLocked,
  labStatus,
  takeLock,
  type KeeperOptions,
  type LabStatus,
} from './protocol.ts'

/**
 * Starts a keeper and returns when the lab is up. Interrupted, it ends the keeper that it started, and with it the lab.
 *
 * @param say is told what has been reached
 */
export async function startKeeper(
  options: KeeperOptions,
  say: (line: string) => void,
  interrupt: AbortSignal,
): Promise<void> {
  const program = join(ROOT, 'dist', 'test', 'lab', 'keeper-process.js')
  const keeper = spawn(process.execPath, [program, JSON.stringify(options)], {
    detached: true,
    stdio: 'ignore',
    cwd: '/',
    env: childEnvironment(),
  })
  let exit: number | null | undefined
  const ended = new Promise<void>(resolve => {
    keeper.once('exit', code => {
      exit = code
      resolve()
    })
  })
  interrupt.addEventListener('abort', () => keeper.kill('SIGTERM'))
  try {
    await untilBuilt(() => exit, say)
  } catch (error) {
    if (!interrupt.aborted) throw error
    await ended
    throw new Failure('INTERRUPTED', 'interrupted; the lab was taken down', {
      remedy: 'npm run -s lab -- up',
    })
  } finally {
    keeper.unref()
  }
}

async function untilBuilt(
  exit: () => number | null | undefined,
  say: (line: string) => void,
): Promise<void> {
  await waitFor('the keeper to start', 40, async () => {
    const code = exit()
    if (code === 30) throw new Failure('LOCKED', 'another lab is being made or removed')
    if (code !== undefined)
      throw new Failure('INTERNAL', `the lab's keeper ended at once (${code ?? 'killed'})`)
    return isKept()
  })
  await ask('built', {}, say)
}

/** Whether a keeper answers. */
export async function isKept(): Promise<boolean> {
  const socket = await dial()
  socket?.destroy()
  return socket !== undefined
}

/** @returns undefined when no lab is up */
export async function readStatus(): Promise<LabStatus | undefined> {
  return (await isKept()) ? labStatus.parse(await ask('status')) : undefined
}

/** Asks the keeper for one thing, and fails the way it fails. */
export async function ask(
  method: string,
  params: object = {},
  say?: (line: string) => void,
): Promise<unknown> {
  const socket = await dial()
  if (!socket) throw new Failure('USAGE', 'no lab is up', { remedy: 'npm run -s lab -- up' })
  const connection = rpcConnection(socket, socket)
  connection.onNotification('say', (line: string) => say?.(line))
  connection.onError(() => undefined)
  connection.listen()
  const lost = new Promise<never>((_, reject) => {
    connection.onClose(() => {
      reject(new Failure('INTERNAL', `the lab's keeper ended while it was asked to: ${method}`))
    })
  })
  try {
    return await Promise.race([connection.sendRequest<unknown>(method, params), lost])
  } catch (error) {
    throw error instanceof ResponseError ? responseToFailure(error, 'INTERNAL') : error
  } finally {
    socket.destroy()
  }
}

/**
 * Removes the lab, with its keeper's help or without.
 *
 * @param keeper remove only the lab of this keeper, never one that somebody else made
 * @returns what is left nevertheless
 */
export async function takeDown(keeper?: number): Promise<string[]> {
  const left = await waitFor('the lab to be taken down', 60, async () => {
    // A keeper that ends while it is asked is one that is gone at the next try.
    const status = await readStatus().catch(() => undefined)
    if (status && keeper !== undefined && status.keeper !== keeper) return []
    if (status) return downResult.parse(await ask('down')).leftovers
    const lock = await takeLock()
    // Neither: a keeper is just starting or ending, or another `down` is at work.
    if (!lock) return undefined
    try {
      await sweep()
      return await leftovers()
    } finally {
      lock.close()
    }
  })
  if (keeper === undefined) await waitFor('the keeper to end', 10, async () => !(await isLocked()))
  else await waitFor('the keeper to end', 10, () => readProcess(keeper)?.zombie !== false)
  return left
}

async function dial(): Promise<Socket | undefined> {
  return new Promise(resolve => {
    const socket = connect(SOCKET)
    socket.once('connect', () => {
      socket.off('error', fail)
      socket.on('error', () => undefined)
      resolve(socket)
    })
    const fail = (): void => resolve(undefined)
    socket.once('error', fail)
  })
}
