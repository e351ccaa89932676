// Looks after the connections: what each moved, and whether anybody is at its other end. nbd-server notices neither a client
// that went away while it hangs, nor one that was refused and stays.

import { hasOpen, peerOf, readSockets, socketsOf } from '../nbd-server/peers.ts'
import type { NbdServer } from '../nbd-server/process.ts'
import type { Traffic } from '../nbd-server/traffic.ts'
import type { Member } from '../session/session.ts'
import type { Log } from '../../shared/log.ts'

/** Who is at the other end. */
export interface From {
  /** An address, `unix` or `classic`. */
  readonly peer: string
  /** The client's name, when it came through a relay. */
  readonly client: string | undefined
}

export interface Connection extends From {
  readonly server: Pick<NbdServer, 'pid' | 'isRunning' | 'kill' | 'ended'>
  readonly traffic: Traffic
  readonly members: Member[]
  /** Hooks that wait for their answer. */
  waiting: number
  /** Since when it has no membership and no hook under way; Infinity while it has one. */
  idleSince: number
  /** When a prerun that was let in went away, until its nbd-server is seen to have the base open. */
  admittedAt: number | undefined
  /** Its postrun has come: whoever stays at the other end may wait for the merge. */
  ending: boolean
  /** Bytes at the last look. */
  movedBefore: number
  /** Whether its socket was ever seen in the kernel's list. */
  peerSeen: boolean
  /** Looks in a row that found nobody at the other end. */
  looksAlone: number
  /** It was sent SIGKILL; a process that waits for its disk may take its time. */
  killed: boolean
}

export function newConnection(
  server: Connection['server'],
  traffic: Traffic,
  from: From,
): Connection {
  return {
    server,
    traffic,
    ...from,
    members: [],
    waiting: 0,
    idleSince: Date.now(),
    admittedAt: undefined,
    ending: false,
    movedBefore: 0,
    peerSeen: false,
    looksAlone: 0,
    killed: false,
  }
}

/** A client that asks for no export, or stays after a refusal, is not kept longer. */
const IDLE_MS = 30_000
/** nbd-server opens the disk a few milliseconds after its prerun; one that did not was not let in. */
const OPEN_MS = 3000
/** How often the kernel is asked for its sockets while a connection moves nothing. */
const SOCKETS_EVERY_MS = 2000
/** One look may fall between two steps of a healthy end. */
const LOOKS_ALONE = 2

/** @returns what is to be called every second; it never rejects */
export function createReaper(
  log: Log,
  connections: ReadonlyMap<string, Connection>,
): () => Promise<void> {
  let looking = false
  let socketsAt = 0

  /** Never waits for the end of the process: the other connections are looked after meanwhile. */
  function kill(key: string, connection: Connection, why: string): void {
    if (connection.killed) return
    connection.killed = true
    log.warn({ connection: key, pid: connection.server.pid }, why)
    connection.server
      .kill()
      .catch((error: unknown) => log.error({ connection: key, error }, 'could not be ended'))
  }

  function endIdle(): void {
    for (const [key, connection] of connections) {
      const { waiting, idleSince } = connection
      // The classic daemon's clients may stay for as long as it lets them.
      if (waiting > 0 || Date.now() - idleSince <= IDLE_MS || key.startsWith('classic-')) continue
      kill(key, connection, 'a connection that asks for nothing is ended')
    }
  }

  /** A prerun that was killed with our answer in its hands: the client was refused, and may stay for ever. */
  async function endNotLetIn(): Promise<void> {
    for (const [key, connection] of connections) {
      const { server, members, admittedAt } = connection
      const member = members.at(-1)
      if (admittedAt === undefined || member === undefined || server.pid === undefined) continue
      if (await hasOpen(server.pid, member.link)) connection.admittedAt = undefined
      else if (Date.now() - admittedAt > OPEN_MS)
        // Killed, never just forgotten: it may be opening the base at this moment.
        kill(key, connection, 'a connection was let in, but its hook did not live to say so')
    }
  }

  /**
   * Connections that are in a session, or wait for one, and moved nothing since the last look. Who has gone while it waits must
   * not have the domain frozen when its turn comes.
   */
  async function quietOnes(): Promise<[string, Connection][]> {
    const open = [...connections].filter(([, { ending }]) => !ending)
    const waiting = open.filter(([, one]) => one.waiting > 0)
    const reading = open.filter(([, one]) => one.idleSince === Infinity && one.waiting === 0)
    await Promise.all(reading.map(([, { traffic }]) => traffic.look()))
    return [...waiting, ...reading].filter(([, connection]) => {
      const moved = connection.traffic.bytes()
      const isQuiet = moved === connection.movedBefore
      connection.movedBefore = moved
      if (!isQuiet) connection.looksAlone = 0
      return isQuiet
    })
  }

  async function endAlone(quiet: readonly [string, Connection][]): Promise<void> {
    const isSuspect = quiet.some(([, { looksAlone }]) => looksAlone > 0)
    if (quiet.length === 0) return
    if (!isSuspect && performance.now() - socketsAt < SOCKETS_EVERY_MS) return
    socketsAt = performance.now()
    const sockets = await readSockets()
    if (!sockets) return
    for (const [key, connection] of quiet) {
      const { server } = connection
      if (server.pid === undefined || !server.isRunning()) continue
      const inodes = await socketsOf(server.pid)
      const peer = peerOf(inodes, sockets, connection.peerSeen && inodes.length > 0)
      connection.peerSeen ||= peer === 'there'
      connection.looksAlone = peer === 'gone' ? connection.looksAlone + 1 : 0
      if (connection.looksAlone >= LOOKS_ALONE && !connection.ending)
        kill(key, connection, 'an nbd-server that outlives its client is ended')
    }
  }

  return async () => {
    if (looking) return
    looking = true
    try {
      endIdle()
      await endNotLetIn()
      await endAlone(await quietOnes())
    } catch (error) {
      log.error({ error }, 'the connections could not be looked after')
    } finally {
      looking = false
    }
  }
}
