// What each role may say on a control socket, and on whose behalf.

import type { MessageConnection } from 'vscode-jsonrpc/node.js'
import { Failure } from '../../shared/failures.ts'
import { failureToResponse } from '../../shared/rpc.ts'
import { createVisitor } from '../clients/visitor.ts'
import { serveGate } from '../gate/methods.ts'
import type { Source } from '../source.ts'
import type { Connections } from './connections.ts'
import type { Domains } from './domains.ts'
import { handle } from './handle.ts'
import { operatorHandlers } from './operator.ts'
import type { Relays } from './relays.ts'
import type { Attach } from './socket.ts'
import type { Visits } from './visits.ts'
import type { Params } from './words.ts'

/** So long a connection that is refused may take to ask, and to be told why. */
const REFUSED_MS = 5000

const WHY_ENDED = {
  revoked: client => `client ${client} was revoked on the source`,
  rights: client => `the rights of client ${client} were narrowed on the source`,
  certificates: client => `the certificates of client ${client} were revoked on the source`,
} satisfies Record<Params<'operator.endClient'>['why'], (client: string) => string>

/** What serve is made of. */
export interface Serving {
  readonly source: Source
  readonly domains: Domains
  readonly connections: Connections
  readonly relays: Relays
  readonly visits: Visits
  /** This source's identity, to which clones are bound. */
  readonly hostId: string
}

/** @param byRoot whether only root can open the socket */
export function attachRoles(serving: Serving, byRoot: boolean): Attach {
  const { source, domains, connections, relays, visits, hostId } = serving
  return {
    rpc(role, connection, end) {
      if (role.role === 'operator')
        handle(connection, {
          ...operatorHandlers(source, domains),
          'operator.endClient': ({ client, why }) => endClient(serving, client, why),
        })
      else if (role.role === 'hook')
        handle(connection, {
          'hook.begin': async params => (await connections.begin(params, closed(connection)), {}),
          'hook.end': async params => (await connections.end(params), {}),
          'hook.start': async start => ({ ended: await source.starts.heard(start) }),
        })
      else {
        const visitor = createVisitor(source.paths.clients, role, byRoot)
        const visit = visits.enter(visitor.client, role.role, end)
        if (visit instanceof Failure) {
          source.log.warn({ client: visitor.client, reason: visit.message }, 'refused')
          refuse(connection, visit, end)
          return
        }
        connection.onClose(visit)
        if (role.role === 'relay') relays.attach(connection, visitor)
        else serveGate(connection, visitor, source, domains, hostId)
      }
    },
    nbd: (ticket, socket) => relays.claim(ticket, socket),
  }
}

/** Answers one question with the reason and ends the connection; it is counted nowhere, so it may not stay. */
function refuse(connection: MessageConnection, reason: Failure, end: () => void): void {
  // After the turn's reading, so that a question that waited for a busy serve is answered.
  const late = setTimeout(() => void setImmediate(end), REFUSED_MS).unref()
  connection.onClose(() => clearTimeout(late))
  connection.onRequest(() => {
    setImmediate(end)
    return failureToResponse(reason)
  })
}

/** Ends everything of a client at once; what its sessions leave is merged as ever. */
function endClient(
  { source, domains, connections, visits }: Serving,
  client: string,
  why: Params<'operator.endClient'>['why'],
): { leases: number; connections: number } {
  const reason = new Failure('SOURCE_REFUSED', WHY_ENDED[why](client))
  const leases = domains.all().reduce((sum, one) => sum + one.endLeases(client, reason), 0)
  const killed = connections.endClient(client)
  const ended = { leases, connections: killed + visits.endAll(client) }
  source.log.warn({ client, ...ended }, 'client ended by an operator')
  return ended
}

/** Aborts when the connection closes. */
function closed(connection: MessageConnection): AbortSignal {
  const controller = new AbortController()
  connection.onClose(() => controller.abort())
  return controller.signal
}
