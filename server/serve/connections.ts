// NBD connections: each gets its own nbd-server with its own config, and is known by an id that only its hooks are told.
// Children of the classic daemon are known by their process id instead.

import { randomBytes } from 'node:crypto'
import { rm } from 'node:fs/promises'
import { createServer, type Server, type Socket } from 'node:net'
import path from 'node:path'
import { Failure, toFailure } from '../../shared/failures.ts'
import { mayHave, type Rights } from '../clients/rights.ts'
import { connectionConfig, sectionsOf, type Section } from '../nbd-server/config.ts'
import { watchProcess } from '../nbd-server/classic.ts'
import { startNbdServer, type NbdServer } from '../nbd-server/process.ts'
import { measureTraffic } from '../nbd-server/traffic.ts'
import { isAlive } from '../session/lease.ts'
import { linkPath } from '../session/links.ts'
import type { Member } from '../session/session.ts'
import type { Source } from '../source.ts'
import type { Domains } from './domains.ts'
import { createReaper, newConnection, type Connection, type From } from './reaper.ts'
import type { HookParams } from './words.ts'

/** A client that came through a relay. */
export interface Guest {
  readonly client: string
  readonly peer: string
  readonly rights: Rights
  /** The one export that it may see; undefined: all that its rights allow. */
  readonly exportName: string | undefined
}

export interface Connections {
  /** Listens for NBD clients of this host, or of `listen.tcp`; every connection becomes an nbd-server. */
  listener(): Server
  /**
   * Hands a socket, of which nothing must have been read, to an nbd-server that has only what the guest may see.
   * @returns undefined when there is none: the socket is destroyed then
   */
  serveGuest(socket: Socket, guest: Guest): Promise<NbdServer | undefined>
  /** prerun of a connection. @param lost aborts when the hook dies unanswered. @throws Failure with the refusal's reason */
  begin(hook: HookParams, lost: AbortSignal): Promise<void>
  /** postrun of a connection; a stock client is kept until its own merge is over. */
  end(hook: HookParams): Promise<void>
  /** Called every second: measures what each moves, ends those that ask for nothing or have nobody at the other end. */
  tick(): void
  /** Kills every nbd-server that is left. */
  closeAll(): Promise<void>
  /** Kills the nbd-servers of one client. @returns how many */
  endClient(client: string): number
  /** Notes a connection that was refused, for the log, `status` and the client's own `outcome`. */
  recordRefusal(refused: Refused, error: unknown): void
}

interface Refused {
  /** Without its token. */
  readonly exportName: string
  readonly domain: string
  readonly token: string | undefined
  readonly client: string | undefined
  readonly peer: string | undefined
}

/** More than any client opens, fewer than would exhaust the host. */
const MAX_CONNECTIONS = 128
/** Quiet for so long, TCP asks whether the peer is there: 10 times, once a second, which Node does not let us choose. */
const KEEPALIVE_MS = 10_000
const REFUSALS_KEPT = 20
/** What `status` shows of a domain. */
const REFUSALS_SHOWN = 5
/** Where the clients of the classic daemon are is known to itself alone. */
const CLASSIC = 'classic'

export function createConnections(source: Source, domains: Domains): Connections {
  const { paths, log } = source
  const connections = new Map<string, Connection>()
  let opening = 0

  function add(key: string, server: Connection['server'], from: From): Connection {
    const connection = newConnection(server, measureTraffic(server.pid), from)
    connections.set(key, connection)
    server.ended
      .then(async () => {
        connections.delete(key)
        for (const member of connection.members) await leave(member)
        await rm(path.join(paths.exports, key), { recursive: true, force: true })
      })
      .catch((error: unknown) =>
        log.error({ connection: key, error }, 'connection could not be ended'),
      )
    return connection
  }

  const leave = (member: Member): ReturnType<ReturnType<Domains['get']>['leave']> =>
    domains.get(member.domain).leave(member.id)
  const reap = createReaper(log, connections)

  async function accept(socket: Socket, guest?: Guest): Promise<NbdServer | undefined> {
    const id = randomBytes(8).toString('hex')
    socket.on('error', () => undefined)
    if (connections.size + opening >= MAX_CONNECTIONS) {
      log.warn({ connections: connections.size }, 'too many connections, one refused')
      socket.destroy()
      return undefined
    }
    opening++
    try {
      // A peer whose host died is noticed by TCP itself: nbd-server cannot do it.
      socket.setKeepAlive(true, KEEPALIVE_MS)
      const peer = guest?.peer ?? socket.remoteAddress?.replace(/^::ffff:/, '') ?? 'unix'
      const sections = await visibleSections(id, guest)
      if (sections.length === 0)
        log.warn({ client: guest?.client, peer }, 'nothing is exported to this connection')
      const config = connectionConfig(id, paths.serveSocket, sections)
      const server = await startNbdServer(paths.connections, id, config, socket, log)
      add(id, server, { peer, client: guest?.client })
      log.debug({ connection: id, pid: server.pid, peer, client: guest?.client }, 'connection')
      return server
    } catch (error) {
      socket.destroy()
      log.error({ connection: id, client: guest?.client, error }, 'connection could not be served')
      return undefined
    } finally {
      opening--
    }
  }

  /** All listed domains and the tokens that are alive; to a guest only its own, or the one export that its relay named. */
  async function visibleSections(connection: string, guest?: Guest): Promise<Section[]> {
    const shown = domains.all().filter(one => !guest || mayHave(guest.rights, one.domain))
    const each = shown.map(async sessions => {
      const { domain } = sessions
      const living = sessions
        .leases()
        .filter(lease => lease.kind === 'gate' && isAlive(lease))
        .filter(lease => !guest || lease.client === guest.client)
      const targets = await domains.targets(domain).catch((error: unknown) => {
        log.warn({ domain, reason: toFailure(error).message }, 'its disks are not known')
        return []
      })
      const link = (target: string): string => linkPath(paths.exports, connection, domain, target)
      return sectionsOf(
        domain,
        targets,
        living.map(lease => lease.token),
        link,
      )
    })
    const sections = (await Promise.all(each)).flat()
    const only = guest?.exportName
    return only === undefined ? sections : sections.filter(({ name }) => name === only)
  }

  async function connectionOf(hook: HookParams): Promise<Connection> {
    const known = connections.get(connectionKey(hook))
    if (known) return known
    if (hook.connection === 'classic')
      return add(connectionKey(hook), await watchProcess(hook.pid), {
        peer: CLASSIC,
        client: undefined,
      })
    throw new Failure('SOURCE_REFUSED', `no connection ${hook.connection}`)
  }

  function recordRefusal(refused: Refused, error: unknown): void {
    const { exportName, domain, token, client, peer } = refused
    const { code, message: reason, remedy } = toFailure(error)
    log.warn({ client, peer, export: exportName, reason }, 'connection refused')
    const refusal = {
      at: new Date().toISOString(),
      export: exportName,
      code,
      reason,
      ...(remedy === undefined ? {} : { remedy }),
      ...(client === undefined ? {} : { client }),
    }
    const lease = token === undefined ? undefined : domains.findLease(token)
    if (lease && (client === undefined || lease.client === client))
      keepLast(lease.refusals, refusal, REFUSALS_KEPT)
    const listed = domains.all().find(one => one.domain === domain)
    if (listed) keepLast(listed.refusals, refusal, REFUSALS_SHOWN)
  }

  return {
    listener: () => createServer({ pauseOnConnect: true }, socket => void accept(socket)),
    serveGuest: accept,
    recordRefusal,
    async begin(hook, lost) {
      let admitted = false
      let connection: Connection | undefined
      try {
        const found = await connectionOf(hook)
        connection = found
        found.waiting++
        const { domain, target, token } = hook
        const member: Member = {
          id: `${connectionKey(hook)}/${domain}/${target}`,
          domain,
          target,
          token,
          link: linkPath(paths.exports, hook.connection, domain, target),
          peer: found.peer,
          client: found.client,
          // An export that the client asked for before, on the same connection, moves nothing any more.
          moved: () => (found.members.at(-1) === member ? found.traffic.bytes() : 0),
          isGone: () => !found.server.isRunning() || (lost.aborted && !admitted),
          reap: () => found.server.kill(),
        }
        found.members.push(member)
        await domains.get(domain).admit(member)
        admitted = true
        const answered = (): number => (found.admittedAt = Date.now())
        if (lost.aborted) answered()
        else lost.addEventListener('abort', answered, { once: true })
      } catch (error) {
        const { domain, target, token } = hook
        const exportName = `${domain}/${target}`
        const { client, peer } = connection ?? { client: undefined, peer: undefined }
        // Who went away was refused nothing, and may come again.
        if (lost.aborted) log.info({ client, peer, export: exportName }, 'connection went away')
        else recordRefusal({ exportName, domain, token, client, peer }, error)
        throw error
      } finally {
        if (connection) {
          connection.waiting--
          connection.idleSince = admitted ? Infinity : Date.now()
        }
      }
    },
    async end(hook) {
      const connection = connections.get(connectionKey(hook))
      if (!connection) return
      connection.ending = true
      // The last chance to see what it moved.
      await connection.traffic.look()
      const ended = await Promise.all(connection.members.map(leave))
      // nbd-server closes the client's socket only after postrun, so a stock client learns by EOF that the merge is over.
      if (hook.token === undefined) await ended.find(session => session !== undefined)?.over
    },
    tick: () => void reap(),
    async closeAll() {
      const ours = [...connections].filter(([key]) => !key.startsWith('classic-'))
      await Promise.all(ours.map(([, { server }]) => server.kill()))
    },
    endClient(client) {
      const own = [...connections].filter(([, one]) => one.client === client)
      for (const [key, { server }] of own)
        server
          .kill()
          .catch((error: unknown) => log.error({ connection: key, error }, 'could not be ended'))
      return own.length
    },
  }
}

/** The classic daemon's children have no id of ours: their pid stands for it. */
function connectionKey({ connection, pid }: HookParams): string {
  return connection === 'classic' ? `classic-${pid}` : connection
}

function keepLast<T>(list: T[], next: T, most: number): void {
  list.push(next)
  list.splice(0, list.length - most)
}
