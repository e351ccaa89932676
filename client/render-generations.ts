// What generations, claims and history look like on a terminal: status, list, prune, claim, and the checks that read no image.

import { formatDuration, formatSize } from '../shared/quantities.ts'
import type { Claimed } from './commands/claim.ts'
import type { Listed } from './commands/list.ts'
import type { CloneStatus } from './commands/status.ts'
import type { VerifiedHistory } from './commands/verify-history.ts'
import type { VerifiedManifests } from './commands/verify-manifests.ts'
import type { HistoryProblem } from './store/history.ts'
import type { PrunePlan, Retained } from './store/prune.ts'
import { table } from './table.ts'

export function statusText(clones: readonly CloneStatus[]): string {
  const rows = clones.map(one => [
    one.clone,
    one.freshness.state.toUpperCase(),
    one.freshness.ageMs === undefined ? '-' : formatDuration(one.freshness.ageMs),
    formatDuration(one.rpoMs),
    one.newest?.id ?? '-',
    one.newest?.consistency ?? '-',
    String(one.generations),
    one.lastFullVerify ? `${formatDuration(one.lastFullVerify.ageMs)} ago` : '-',
    one.lastAttempt?.code ?? one.lastAttempt?.outcome ?? '-',
  ])
  const age = ['DOMAIN', 'STATE', 'AGE', 'RPO', 'NEWEST', 'CONSISTENCY']
  const head = [...age, 'KEPT', 'FULL VERIFY', 'LAST PULL']
  const notes = clones.flatMap(one =>
    [
      ...(one.freshness.reason === undefined ? [] : [one.freshness.reason]),
      ...(one.current?.pinned
        ? [`current stays at ${one.current.id} (seq ${one.current.seq})`]
        : []),
      ...(one.staging ? [stagingText(one.staging)] : []),
      ...one.problems,
    ].map(note => `${one.clone}: ${note}`),
  )
  return [table(head, rows), ...notes].join('\n')
}

function stagingText({ recoveryPoints, bytes }: NonNullable<CloneStatus['staging']>): string {
  const of = recoveryPoints.length === 0 ? '' : ` of ${recoveryPoints.join(', ')}`
  return `staging holds ${formatSize(bytes)}${of}: a running pull's, or an interrupted one's`
}

export function listText(
  generations: readonly Listed[],
  problems: readonly HistoryProblem[],
  now = Date.now(),
): string {
  const rows = generations.map(one => [
    one.generation ? String(one.generation.seq) : '-',
    one.id,
    one.generation?.recoveryPoint.consistency ?? 'BROKEN',
    one.generation?.disks.map(disk => disk.target).join(' ') ?? '-',
    one.generation ? formatSize(sum(one.generation.disks.map(({ size }) => size))) : '-',
    one.disks ? formatSize(sum(one.disks.map(({ bytes }) => bytes))) : '-',
    one.disks ? [...new Set(one.disks.map(({ form }) => form))].join(' ') : '-',
    one.verified ? `${one.verified.level} ${ageText(one.verified.at, now)}` : '-',
    [
      ...(one.current ? ['current'] : []),
      ...one.claims.map(({ text, stale }) => `claimed: ${text}${stale ? ' (gone)' : ''}`),
      ...(one.broken === undefined ? [] : [one.broken]),
      ...(one.damaged === undefined ? [] : [`DAMAGED: ${one.damaged}`]),
    ].join('; '),
  ])
  const what = ['SEQ', 'RECOVERY POINT', 'CONSISTENCY', 'DISKS', 'SIZE']
  const head = [...what, 'ON DISK', 'KEPT AS', 'VERIFIED', 'NOTES']
  const notes = problems.map(problem => `history.jsonl: ${historyProblemText(problem)}`)
  return [table(head, rows), ...notes].join('\n')
}

const sum = (numbers: readonly number[]): number => numbers.reduce((all, one) => all + one, 0)

/** @param at ISO 8601, this host's clock. */
const ageText = (at: string, now: number): string =>
  `${formatDuration(Math.max(0, now - Date.parse(at)))} ago`

const historyProblemText = ({ line, why }: HistoryProblem): string => `line ${line}: ${why}`

export function verifyHistoryText({
  clone,
  lines,
  published,
  torn,
  problems,
}: VerifiedHistory): string {
  return [
    ...problems.map(problem => `${clone}: history.jsonl: ${historyProblemText(problem)}`),
    ...torn.map(
      line => `${clone}: history.jsonl: line ${line}: torn by a crash while it was written`,
    ),
    ...(problems.length > 0
      ? []
      : [`${clone}: history of ${lines} attempts, ${published} published: the chain is whole`]),
  ].join('\n')
}

export function verifyManifestsText({ clone, generations }: VerifiedManifests): string {
  const good = generations.filter(({ bad }) => bad.length === 0)
  const manifests = sum(good.map(one => one.manifests))
  return [
    ...generations.flatMap(({ id, bad }) => bad.map(one => `${clone}: ${id}: ${one}`)),
    `${clone}: ${good.length} of ${generations.length} generations: ${manifests} manifests match; no image was read`,
  ].join('\n')
}

export function pruneText(clone: string, plan: PrunePlan, dryRun: boolean): string {
  const lines = [
    ...plan.remove.map(told(dryRun ? 'would remove' : 'removed')),
    ...plan.spared.map(told('spared')),
    // What the policy keeps is only asked for when nothing is done.
    ...(dryRun ? plan.keep.map(told('keeps')) : []),
  ]
  return lines.length === 0 ? `${clone}: nothing to prune` : lines.join('\n')

  function told(verb: string): (one: Retained) => string {
    return ({ id, seq, why }) =>
      `${clone}: ${verb} ${id}${seq === undefined ? '' : ` (seq ${seq})`}: ${why}`
  }
}

export function claimText(did: 'claim' | 'release', { clone, id, seq, purpose }: Claimed): string {
  return `${clone}: ${did}${did === 'claim' ? 'ed' : 'd'} ${id} (seq ${seq}) for ${purpose}`
}
