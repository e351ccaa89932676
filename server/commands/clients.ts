// clients: who may do what here, as people read it.

import type { ListedClient } from '../clients/registry.ts'
import { formatSize } from '../../shared/quantities.ts'

/** One row per client; one whose file is wrong says so, and may do nothing. */
export function clientsTable(clients: readonly ListedClient[]): string {
  if (clients.length === 0)
    return 'no client is authorized; to do it: clone-server authorize KEY.pub --client NAME --domains DOMAIN --install'
  const rows = clients.map(({ client, rights, reason }) =>
    rights
      ? [
          client,
          rights.domains === 'all' ? 'all' : rights.domains.join(','),
          rights.verbs.join(','),
          rights.bandwidth === undefined ? '-' : `${formatSize(rights.bandwidth)}/s`,
          rights.from?.join(',') ?? 'anywhere',
        ]
      : [client, `may do nothing: ${reason ?? ''}`],
  )
  const head = ['CLIENT', 'DOMAINS', 'VERBS', 'BANDWIDTH', 'FROM']
  const widths = head.map((title, at) =>
    Math.max(
      title.length,
      ...rows.filter(row => row.length === head.length).map(row => row[at]?.length ?? 0),
    ),
  )
  return [head, ...rows]
    .map(row =>
      row
        .map((cell, at) => cell.padEnd(widths[at] ?? 0))
        .join('  ')
        .trimEnd(),
    )
    .join('\n')
}
