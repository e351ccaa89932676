// A run of the table as people read it: a line per cell, and a count.

import type { Cell } from './scenario.ts'

function verdict({ wrong, operator }: Cell): string {
  if (wrong.length > 0) return 'BAD'
  return operator ? 'operator' : 'ok'
}

export function line(cell: Cell): string {
  const { scenario, happened, exit, seconds, pulled, wrong } = cell
  const words = [
    verdict(cell).padEnd(8),
    scenario.name.padEnd(30),
    `exit ${exit ?? '-'}`.padEnd(9),
    (seconds === undefined ? '-' : `${seconds.toFixed(1)} s`).padStart(7),
    pulled ? 'pull ok ' : '        ',
    happened,
  ]
  return [words.join(' ').trimEnd(), ...wrong.map(one => `         ${one}`)].join('\n')
}

export function summary(cells: readonly Cell[]): string {
  const failed = cells.filter(({ wrong }) => wrong.length > 0).length
  const operator = cells.filter(cell => verdict(cell) === 'operator').length
  const left = operator === 0 ? '' : ` (${operator} of them left to an operator, with commands)`
  return `${cells.length - failed} passed, ${failed} failed${left}`
}
