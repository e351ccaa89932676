// What a pull, a verify and the configuration look like on a terminal, and a pull as the versioned JSON object of --json.

import { describeFailure } from '../shared/failures.ts'
import { failureJson } from '../shared/help.ts'
import { formatDuration, formatSize } from '../shared/quantities.ts'
import type { Shown } from './commands/config.ts'
import type { Exported } from './commands/export.ts'
import type { Imported } from './commands/import.ts'
import type { PullResult } from './commands/pull.ts'
import type { RolledBack } from './commands/rollback.ts'
import { table } from './table.ts'

export function pullJson(results: readonly PullResult[], exit: number): object {
  return {
    exit,
    results: results.map(result =>
      result.outcome === 'failed'
        ? { ...result, failure: failureJson(result.failure) }
        : result.outcome === 'published'
          ? { clone: result.clone, outcome: result.outcome, ...result.pulled }
          : result,
    ),
  }
}

export function pullText(result: PullResult): string {
  const { clone } = result
  switch (result.outcome) {
    case 'not-due':
      return `${clone}: not due, its recovery point is ${formatDuration(result.ageMs)} old`
    case 'running':
      return `${clone}: being pulled already, by ${result.by}`
    case 'planned':
      return [
        ...result.disks.map(({ target, kind, reason, size }) => {
          const much = size === undefined ? '' : ` ${formatSize(size)},`
          return `${clone}: would pull ${target},${much} ${kind}: ${reason}`
        }),
        ...result.omitted
          .filter(({ lost }) => lost)
          .map(({ target, reason }) => `${clone}: would not pull ${target}: ${reason}`),
      ].join('\n')
    case 'failed':
      return describeFailure(`clone: ${clone}`, result.failure)
    case 'published': {
      const { recoveryPoint, seq, bytes, seconds, source, alarm } = result.pulled
      const took = (phase: string): string => formatDuration((seconds[phase] ?? 0) * 1000)
      const after =
        source === 'merged'
          ? 'the source is on its bases again'
          : "the source's session is kept by others"
      return [
        `${clone}: generation ${recoveryPoint} (seq ${seq}) published and verified; ${after}`,
        `  ${formatSize(bytes.read)} read, ${formatSize(bytes.written)} written;` +
          ` copy ${took('copy')}, verify ${took('verify')}, merge ${took('merge')}`,
        ...(alarm === undefined ? [] : [`  ALARM: ${alarm}; all was compared instead`]),
      ].join('\n')
    }
  }
}

export function rollbackText({
  clone,
  dryRun,
  before,
  current,
  selected,
  steps,
}: RolledBack): string {
  const bytes = steps.reduce((sum, step) => sum + step.bytes, 0)
  const { id, seq } = current
  return [
    `${clone}: ${dryRun ? 'would make' : 'made'} ${id} (seq ${seq}) current` +
      (steps.length === 0
        ? ''
        : `, ${formatSize(bytes)} exchanged in ${steps.length} ${steps.length === 1 ? 'step' : 'steps'}`),
    ...(selected === 'newest' ? [] : [`  to go forward again: clone rollback ${clone} newest`]),
    ...(before && before.seq !== seq
      ? [`  current was ${before.id}; to go back to it: clone rollback ${clone} ${before.seq}`]
      : []),
  ].join('\n')
}

export function exportText({ clone, id, seq, folder, disks }: Exported): string {
  return `${clone}: generation ${id} (seq ${seq}) exported to ${folder} and verified: ${imagesText(disks)}`
}

export function importText({ clone, id, seq, disks }: Imported): string {
  return `${clone}: generation ${id} (seq ${seq}) imported and verified: ${imagesText(disks)}`
}

function imagesText(disks: Exported['disks']): string {
  return disks
    .map(({ target, format, size, convertedFrom }) => {
      const was = convertedFrom ? ` (was ${convertedFrom.format})` : ''
      return `${target} ${format}${was} ${formatSize(size)}`
    })
    .join(', ')
}

export function showText(shown: readonly Shown[]): string {
  return shown
    .map(({ clone, values }) => {
      const rows = values.map(({ key, value, origin }) => [key, value, origin])
      return `${clone}\n${table(['KEY', 'VALUE', 'FROM'], rows)}`
    })
    .join('\n\n')
}
