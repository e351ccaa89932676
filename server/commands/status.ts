// status as people read it.

import Table from 'cli-table3'
import { formatDuration, formatSize } from '../../shared/quantities.ts'
import type { DomainStatus } from '../serve/words.ts'

/** One row per domain; overlays below their domain. */
export function statusTable(domains: readonly DomainStatus[]): string {
  const table = new Table({
    head: ['DOMAIN', 'STATE', 'RECOVERY POINT', 'AGE', 'HOLDERS', 'OVERLAYS', 'LAST'],
    style: { head: [], border: [], compact: true },
  })
  for (const one of domains)
    table.push([
      one.domain,
      one.state,
      one.recoveryPoint ?? '-',
      one.ageMs === undefined ? '-' : formatDuration(one.ageMs),
      one.holders.map(holder => `${holder.kind} ${holder.client}`).join('\n') || '-',
      one.disks.map(disk => `${disk.target} ${formatSize(disk.overlayBytes)}`).join('\n') || '-',
      one.last ? `merged ${one.last.recoveryPoint}` : (one.reason ?? '-'),
    ])
  return table.toString()
}
