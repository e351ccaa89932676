// Relays: each carries one NBD stream of a named client into serve, with a ticket that is good once.

import { randomBytes } from 'node:crypto'
import type { Socket } from 'node:net'
import type { MessageConnection } from 'vscode-jsonrpc/node.js'
import { Failure, toFailure } from '../../shared/failures.ts'
import type { Log } from '../../shared/log.ts'
import { exportName, parseExportName } from '../../shared/names.ts'
import type { Visitor } from '../clients/visitor.ts'
import type { NbdServer } from '../nbd-server/process.ts'
import { isAlive, overFailure } from '../session/lease.ts'
import type { Connections, Guest } from './connections.ts'
import type { Domains } from './domains.ts'
import { handle } from './handle.ts'

export interface Relays {
  /** Answers one relay. */
  attach(connection: MessageConnection, visitor: Visitor): void
  /** Serves the NBD connection of a ticket; destroys it when the ticket is not good (any more). */
  claim(ticket: string, socket: Socket): void
}

/** A ticket that is not used by then is not good any more. */
const TICKET_MS = 10_000

export function createRelays(log: Log, domains: Domains, connections: Connections): Relays {
  /** What to do with the socket that comes with a ticket. */
  const tickets = new Map<string, (socket: Socket) => void>()

  /** The export that is asked for by name, checked. @throws Failure SOURCE_REFUSED */
  async function checkExport(visitor: Visitor, asked: string): Promise<void> {
    const named = parseExportName(asked)
    if (!named)
      throw new Failure('SOURCE_REFUSED', `${JSON.stringify(asked)} is no export: DOMAIN/TARGET`)
    const { domain, target, token } = named
    await visitor.may('pull', domain)
    const targets = await domains.targets(domains.get(domain).domain)
    if (!targets.includes(target))
      throw new Failure('SOURCE_REFUSED', `domain ${domain} exports no disk ${target}`)
    if (token === undefined) return
    const lease = domains.findLease(token)
    const isOwn = lease?.client === visitor.client && lease.domain === domain
    if (!isOwn || !isAlive(lease)) throw overFailure(isOwn ? lease : undefined)
  }

  /** Every refusal is logged with its client and reason, and one of an export is kept for `status` and `outcome`. */
  function record({ client, peer }: Visitor, asked: string | undefined, error: unknown): void {
    const named = asked === undefined ? undefined : parseExportName(asked)
    if (!named) {
      log.warn({ client, peer, reason: toFailure(error).message }, 'relay refused')
      return
    }
    const { domain, target, token } = named
    const refused = { exportName: exportName(domain, target), domain, token, client, peer }
    connections.recordRefusal(refused, error)
  }

  return {
    attach(connection, visitor) {
      const { client, peer = 'unix' } = visitor
      const own = log.child({ client, peer })
      let ticket: string | undefined
      let server: NbdServer | undefined
      let gone = false
      connection.onClose(() => {
        gone = true
        if (ticket !== undefined) tickets.delete(ticket)
        // A stream whose relay has gone is nobody's any more, also if its nbd-server has not noticed.
        server?.kill().catch((error: unknown) => own.error({ error }, 'could not be ended'))
      })

      /** @throws Failure SOURCE_REFUSED with the reason why not */
      async function admit(asked: string | undefined): Promise<Guest> {
        if (ticket !== undefined)
          throw new Failure('SOURCE_REFUSED', 'this relay has had its ticket: one for each stream')
        ticket = randomBytes(16).toString('hex')
        if (asked !== undefined) await checkExport(visitor, asked)
        return { client, peer, rights: await visitor.may('pull'), exportName: asked }
      }

      function issue(given: string, guest: Guest): void {
        const late = setTimeout(() => tickets.delete(given), TICKET_MS).unref()
        tickets.set(given, socket => {
          clearTimeout(late)
          tickets.delete(given)
          void connections.serveGuest(socket, guest).then(started => {
            server = started
            if (gone) void started?.kill()
          })
        })
      }

      handle(connection, {
        async 'relay.admit'({ export: asked }) {
          const guest = await admit(asked).catch((error: unknown) => {
            record(visitor, asked, error)
            throw error
          })
          if (gone || ticket === undefined)
            throw new Failure('SOURCE_REFUSED', 'the relay went away')
          issue(ticket, guest)
          return { ticket, limited: false }
        },
        'relay.take': () => ({}),
        'relay.refused'({ what }) {
          own.warn({ what }, 'refused')
          return {}
        },
      })
    },
    claim(ticket, socket) {
      const serveIt = tickets.get(ticket)
      if (serveIt) {
        serveIt(socket)
        return
      }
      log.warn('an NBD connection without a good ticket is refused')
      socket.destroy()
    },
  }
}
