// A plain table for a terminal: columns, no lines, no colours.

import Table from 'cli-table3'

export function table(head: string[], rows: string[][]): string {
  const plain = { head: [], border: [] }
  const chars = { mid: '', 'left-mid': '', 'mid-mid': '', 'right-mid': '', left: '', right: '' }
  const lines = { top: '', 'top-mid': '', 'top-left': '', 'top-right': '' }
  const ends = { bottom: '', 'bottom-mid': '', 'bottom-left': '', 'bottom-right': '', middle: '  ' }
  const made = new Table({
    head,
    chars: { ...chars, ...lines, ...ends },
    style: { ...plain, 'padding-left': 0, 'padding-right': 0, compact: true },
  })
  made.push(...rows)
  return made
    .toString()
    .split('\n')
    .map(line => line.trimEnd())
    .join('\n')
}
