// status as people read it: a table of the domains, then what is to be said of each.

import Table from 'cli-table3'
import { formatDuration, formatSize } from '../../shared/quantities.ts'
import type { DomainStatus, LastSession } from '../serve/words.ts'

/** One row per domain, made for 100 columns; below the table how its last session ended, and who was refused. */
export function statusTable(domains: readonly DomainStatus[]): string {
  const said = domains.flatMap(sentencesOf)
  return [table(domains), ...(said.length > 0 ? ['', ...said] : [])].join('\n')
}

const NO_LINES = {
  ...{ top: '', 'top-mid': '', 'top-left': '', 'top-right': '' },
  ...{ bottom: '', 'bottom-mid': '', 'bottom-left': '', 'bottom-right': '' },
  ...{ mid: '', 'left-mid': '', 'mid-mid': '', 'right-mid': '', left: '', right: '' },
}

function table(domains: readonly DomainStatus[]): string {
  const made = new Table({
    head: ['DOMAIN', 'STATE', 'RECOVERY POINT', 'AGE', 'READERS', 'OVERLAYS'],
    chars: { ...NO_LINES, middle: '  ' },
    style: { head: [], border: [], 'padding-left': 0, 'padding-right': 0, compact: true },
  })
  for (const one of domains)
    made.push([
      one.domain,
      one.state,
      one.recoveryPoint ?? '-',
      one.ageMs === undefined ? '-' : formatDuration(one.ageMs),
      readersOf(one).join('\n') || '-',
      one.disks.map(disk => `${disk.target} ${formatSize(disk.overlayBytes)}`).join('\n') || '-',
    ])
  return made
    .toString()
    .split('\n')
    .map(line => line.trimEnd())
    .join('\n')
}

/** Every connection with what it moved, what was hashed for them; a holder without a connection by its name. */
function readersOf({ holders, members, hashed = 0 }: DomainStatus): string[] {
  const idle = holders.filter(
    ({ kind, client }) =>
      kind !== 'connection' && !members.some(member => member.client === client),
  )
  return [
    ...new Set(idle.map(({ client }) => client)),
    ...members.map(
      ({ client, peer, target, bytes }) =>
        `${client ?? `stock ${peer}`} ${target} ${formatSize(bytes)}`,
    ),
    ...(hashed > 0 ? [`compared by hash ${formatSize(hashed)}`] : []),
  ]
}

function sentencesOf(one: DomainStatus): string[] {
  const { domain, reason, remedy, freezeMs, snapshotMs, last, refusals } = one
  const lines: string[] = []
  if (reason !== undefined) lines.push(`${domain}: ${one.state}: ${reason}`)
  for (const command of remedy?.split(/\n\s*/) ?? []) lines.push(`  hint: ${command}`)
  if (snapshotMs !== undefined)
    lines.push(`${domain}: ${one.consistency ?? ''}, ${tookOf({ freezeMs, snapshotMs })}`)
  if (last) lines.push(...lastOf(last).map(line => `${domain}: ${line}`))
  for (const refusal of refusals)
    lines.push(
      `${domain}: refused ${refusal.export}${refusal.client === undefined ? '' : ` for ${refusal.client}`} at ${clock(refusal.at)}: ${refusal.reason}`,
    )
  return lines
}

function lastOf(last: LastSession): string[] {
  const { recoveryPoint, at, state, reason, remedy, failure, disks } = last
  const merged = disks.map(
    disk => `${disk.target} ${formatSize(disk.overlayBytes)} in ${formatDuration(disk.mergeMs)}`,
  )
  const how = state === 'merged' ? `merged ${recoveryPoint}` : `not merged: ${recoveryPoint}`
  return [
    [`last: ${how} at ${clock(at)}`, ...merged, ...tookOf(last).split(', ')]
      .filter(part => part !== '')
      .join(', '),
    ...(failure === undefined ? [] : [`  the merge failed: ${failure}`]),
    ...(reason === undefined ? [] : [`  it was ended: ${reason}`]),
    ...(reason === undefined || remedy === undefined ? [] : [`  hint: ${remedy}`]),
  ]
}

function tookOf({ freezeMs, snapshotMs }: Pick<LastSession, 'freezeMs' | 'snapshotMs'>): string {
  return [
    ...(freezeMs === undefined || freezeMs === 0 ? [] : [`guest held for ${freezeMs} ms`]),
    ...(snapshotMs === undefined ? [] : [`snapshot in ${snapshotMs} ms`]),
  ].join(', ')
}

/** `2026-11-20 11:51:13Z`, to the second. */
function clock(at: string): string {
  return `${at.slice(0, 19).replace('T', ' ')}Z`
}
