// NBD connections: each gets its own nbd-server with its own config, and is known by an id that only its hooks are told.

import { randomBytes } from 'node:crypto'
import { readFile, rm } from 'node:fs/promises'
import { createServer, type Server, type Socket } from 'node:net'
import path from 'node:path'
import { Failure } from '../../shared/failures.ts'
import { connectionConfig, sectionsOf } from '../nbd-server/config.ts'
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
  /** prerun of a connection. @throws Failure with the reason of the refusal */
  begin(hook: HookParams): Promise<void>
  /** postrun of a connection; a stock client is kept until its own merge is over. */
  end(hook: HookParams): Promise<void>
  /** Kills every nbd-server that is left. */
  closeAll(): Promise<void>
}

/** More than any client opens, fewer than would exhaust the host. */
const MAX_CONNECTIONS = 128
const REFUSALS_KEPT = 20

export function createConnections(source: Source, domains: Domains): Connections {
  const { paths, log } = source
  const servers = new Map<string, NbdServer>()
  const members = new Map<string, Member[]>()
  let opening = 0

  async function leaveAll(connection: string): Promise<void> {
    for (const member of members.get(connection) ?? []) {
      member.gone = true
      for (const sessions of domains.all()) await sessions.leave(member.id)
    }
    members.delete(connection)
    await rm(path.join(paths.exports, connection), { recursive: true, force: true })
  }

  async function accept(socket: Socket): Promise<void> {
    const id = randomBytes(8).toString('hex')
    socket.on('error', () => undefined)
    if (servers.size + opening >= MAX_CONNECTIONS) {
      log.warn({ connections: servers.size }, 'too many connections, one refused')
      socket.destroy()
      return
    }
    opening++
    try {
      // A peer whose host died is noticed by TCP itself: nbd-server cannot do it (research: nbd-server 2).
      socket.setKeepAlive(true, 10_000)
      const config = connectionConfig(id, paths.serveSocket, await visibleSections(id))
      const server = await startNbdServer(paths.connections, id, config, socket, log)
      servers.set(id, server)
      log.debug({ connection: id, pid: server.pid }, 'connection')
      void server.ended.then(async () => {
        servers.delete(id)
        await leaveAll(id)
      })
    } catch (error) {
      socket.destroy()
      log.error({ connection: id, error }, 'connection could not be served')
    } finally {
      opening--
    }
  }

  /** What the peer may ask for: all listed domains, and the tokens that are alive. */
  async function visibleSections(connection: string): Promise<ReturnType<typeof sectionsOf>> {
    const each = domains.all().map(async sessions => {
      const { domain } = sessions
      const tokens = sessions
        .leases()
        .filter(lease => lease.kind === 'gate' && isAlive(lease))
        .map(lease => lease.token)
      return sectionsOf(domain, await domains.targets(domain), tokens, target =>
        linkPath(paths.exports, connection, domain, target),
      )
    })
    return (await Promise.all(each)).flat()
  }

  async function memberFor(hook: HookParams): Promise<Member> {
    const { connection, domain, target, token, pid } = hook
    const id = connectionKey(hook)
    const base = {
      id: `${id}/${domain}/${target}`,
      target,
      token,
      link: linkPath(paths.exports, connection, domain, target),
      gone: false,
    }
    if (connection === 'classic') {
      const born = await startTime(pid)
      const alive = async (): Promise<boolean> =>
        born !== undefined && (await startTime(pid)) === born
      const member: Member = {
        ...base,
        isRunning: () => !member.gone,
        async reap() {
          if (await alive()) process.kill(pid, 'SIGKILL')
        },
      }
      // Nobody tells us when a child of the classic daemon dies, so its process is watched.
      const watch = setInterval(() => {
        void alive().then(yes => {
          if (yes) return
          member.gone = true
          members.delete(id)
          clearInterval(watch)
        })
      }, 500)
      watch.unref()
      return member
    }
    const server = servers.get(connection)
    if (!server) throw new Failure('SOURCE_REFUSED', `no connection ${connection}`)
    return { ...base, isRunning: () => server.isRunning(), reap: () => server.kill() }
  }

  function recordRefusal(hook: HookParams, error: unknown): void {
    const failure = error instanceof Failure ? error : undefined
    const reason = error instanceof Error ? error.message : String(error)
    log.warn({ domain: hook.domain, target: hook.target, reason }, 'connection refused')
    const lease = hook.token === undefined ? undefined : domains.findLease(hook.token)?.lease
    lease?.refusals.push({
      at: new Date().toISOString(),
      export: `${hook.domain}/${hook.target}`,
      code: failure?.code ?? 'INTERNAL',
      reason,
      ...(failure?.remedy === undefined ? {} : { remedy: failure.remedy }),
    })
    lease?.refusals.splice(0, lease.refusals.length - REFUSALS_KEPT)
  }

  return {
    listener: () => createServer({ pauseOnConnect: true }, socket => void accept(socket)),
    async begin(hook) {
      try {
        const member = await memberFor(hook)
        const key = connectionKey(hook)
        members.set(key, [...(members.get(key) ?? []), member])
        await domains.get(hook.domain).admit(member)
      } catch (error) {
        recordRefusal(hook, error)
        throw error
      }
    },
    async end(hook) {
      const key = connectionKey(hook)
      const sessions = domains.get(hook.domain)
      const ended = (members.get(key) ?? []).map(member => sessions.leave(member.id))
      const [session] = (await Promise.all(ended)).filter(one => one !== undefined)
      // nbd-server closes the client's socket only after postrun, so a stock client learns by EOF that the merge is over.
      if (session && hook.token === undefined) await session.over
    },
    async closeAll() {
      await Promise.all([...servers.values()].map(server => server.kill()))
    },
  }
}

/** The classic daemon's children have no id of ours: their pid stands for it. */
function connectionKey({ connection, pid }: HookParams): string {
  return connection === 'classic' ? `classic-${pid}` : connection
}

/** Start time of a process in clock ticks since boot, which tells a reused pid; undefined when it is gone. */
async function startTime(pid: number): Promise<string | undefined> {
  const text = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => undefined)
  const fields = text?.slice(text.lastIndexOf(')') + 2).split(' ')
  return fields?.[0] === 'Z' ? undefined : fields?.[19]
}
