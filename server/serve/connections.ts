// NBD connections: each gets its own nbd-server with its own config, and is known by an id that only its hooks are told.
// Children of the classic daemon are known by their process id instead.

import { randomBytes } from 'node:crypto'
import { rm } from 'node:fs/promises'
import { createServer, type Server, type Socket } from 'node:net'
import path from 'node:path'
import { Failure, toFailure } from '../../shared/failures.ts'
import { connectionConfig, sectionsOf, type Section } from '../nbd-server/config.ts'
import { watchProcess } from '../nbd-server/classic.ts'
import { startNbdServer, type NbdServer } from '../nbd-server/process.ts'
import { isAlive } from '../session/lease.ts'
import { linkPath } from '../session/links.ts'
import type { Member } from '../session/session.ts'
import type { Source } from '../source.ts'
import type { Domains } from './domains.ts'
import type { HookParams } from './words.ts'

export interface Connections {
  /** Listens for NBD clients; every connection becomes an nbd-server. */
  listener(): Server
  /** prerun of a connection. @param lost aborts when the hook dies unanswered. @throws Failure with the refusal's reason */
  begin(hook: HookParams, lost: AbortSignal): Promise<void>
  /** postrun of a connection; a stock client is kept until its own merge is over. */
  end(hook: HookParams): Promise<void>
  /** Called every second: ends connections that ask for nothing. */
  tick(): void
  /** Kills every nbd-server that is left. */
  closeAll(): Promise<void>
}

interface Connection {
  readonly server: Pick<NbdServer, 'isRunning' | 'kill' | 'ended'>
  readonly members: Member[]
  /** Hooks that wait for their answer. */
  waiting: number
  /** Since when it has no membership and no hook under way. */
  idleSince: number
}

/** More than any client opens, fewer than would exhaust the host. */
const MAX_CONNECTIONS = 128
/** A client that asks for no export, or stays after a refusal, is not kept longer. */
const IDLE_MS = 30_000
const REFUSALS_KEPT = 20

export function createConnections(source: Source, domains: Domains): Connections {
  const { paths, log } = source
  const connections = new Map<string, Connection>()
  let opening = 0

  function add(key: string, server: Connection['server']): Connection {
    const connection = { server, members: [], waiting: 0, idleSince: Date.now() }
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

  async function accept(socket: Socket): Promise<void> {
    const id = randomBytes(8).toString('hex')
    socket.on('error', () => undefined)
    if (connections.size + opening >= MAX_CONNECTIONS) {
      log.warn({ connections: connections.size }, 'too many connections, one refused')
      socket.destroy()
      return
    }
    opening++
    try {
      // A peer whose host died is noticed by TCP itself: nbd-server cannot do it.
      socket.setKeepAlive(true, 10_000)
      const sections = await visibleSections(id)
      if (sections.length === 0)
        log.warn('no domain exports a disk, so the connection gets nothing')
      const config = connectionConfig(id, paths.serveSocket, sections)
      const server = await startNbdServer(paths.connections, id, config, socket, log)
      add(id, server)
      log.debug({ connection: id, pid: server.pid }, 'connection')
    } catch (error) {
      socket.destroy()
      log.error({ connection: id, error }, 'connection could not be served')
    } finally {
      opening--
    }
  }

  /** What the peer may ask for: all listed domains, and the tokens that are alive. */
  async function visibleSections(connection: string): Promise<Section[]> {
    const each = domains.all().map(async sessions => {
      const { domain } = sessions
      const living = sessions.leases().filter(lease => lease.kind === 'gate' && isAlive(lease))
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
    return (await Promise.all(each)).flat()
  }

  async function connectionOf(hook: HookParams): Promise<Connection> {
    const known = connections.get(connectionKey(hook))
    if (known) return known
    if (hook.connection === 'classic') return add(connectionKey(hook), await watchProcess(hook.pid))
    throw new Failure('SOURCE_REFUSED', `no connection ${hook.connection}`)
  }

  function recordRefusal(hook: HookParams, error: unknown): void {
    const failure = toFailure(error)
    log.warn(
      { domain: hook.domain, target: hook.target, reason: failure.message },
      'connection refused',
    )
    const lease = hook.token === undefined ? undefined : domains.findLease(hook.token)
    lease?.refusals.push({
      at: new Date().toISOString(),
      export: `${hook.domain}/${hook.target}`,
      code: failure.code,
      reason: failure.message,
      ...(failure.remedy === undefined ? {} : { remedy: failure.remedy }),
    })
    lease?.refusals.splice(0, lease.refusals.length - REFUSALS_KEPT)
  }

  return {
    listener: () => createServer({ pauseOnConnect: true }, socket => void accept(socket)),
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
          isGone: () => !found.server.isRunning() || (lost.aborted && !admitted),
          reap: () => found.server.kill(),
        }
        found.members.push(member)
        await domains.get(domain).admit(member)
        admitted = true
      } catch (error) {
        recordRefusal(hook, error)
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
      const ended = await Promise.all(connection.members.map(leave))
      // nbd-server closes the client's socket only after postrun, so a stock client learns by EOF that the merge is over.
      if (hook.token === undefined) await ended.find(session => session !== undefined)?.over
    },
    tick() {
      for (const [id, { server, waiting, idleSince }] of connections)
        if (waiting === 0 && Date.now() - idleSince > IDLE_MS && !id.startsWith('classic-')) {
          log.warn({ connection: id }, 'a connection that asks for nothing is ended')
          void server.kill()
        }
    },
    async closeAll() {
      const ours = [...connections].filter(([key]) => !key.startsWith('classic-'))
      await Promise.all(ours.map(([, { server }]) => server.kill()))
    },
  }
}

/** The classic daemon's children have no id of ours: their pid stands for it. */
function connectionKey({ connection, pid }: HookParams): string {
  return connection === 'classic' ? `classic-${pid}` : connection
}
