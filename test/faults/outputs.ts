// The table from what runs have printed: a run that was cut short, or one of some rows only, counts for the rows that it had.

import { readFile } from 'node:fs/promises'
import type { Cell, Scenario } from './scenario.ts'

const ROW = /^(ok|operator|BAD) +(\S+) +exit (\S+) +(-|[\d.]+ s) +(pull ok)? *.*? ->(?: (.*))?$/

/** The cells of one run's output; a row that the table no longer has is left out. */
export function cellsOf(output: string, scenarios: readonly Scenario[]): Cell[] {
  return output.split('\n').flatMap((text, index, lines) => {
    const [, verdict, name, exit = '-', seconds = '-', pulled, happened = ''] = ROW.exec(text) ?? []
    const scenario = scenarios.find(one => one.name === name)
    if (!scenario) return []
    const wrong = verdict === 'BAD' ? [(lines[index + 1] ?? '').trim()] : []
    return [
      {
        scenario,
        wrong,
        operator: verdict === 'operator',
        happened,
        exit: exit === '-' ? undefined : Number(exit),
        said: '',
        seconds: seconds === '-' ? undefined : Number.parseFloat(seconds),
        pulled: pulled !== undefined,
      },
    ]
  })
}

/** The cells of several outputs, in the order of the table; a later run's row replaces an earlier one's. */
export async function cellsOfFiles(
  files: readonly string[],
  scenarios: readonly Scenario[],
): Promise<{ cells: Cell[]; facts: string[] }> {
  const found = new Map<string, Cell>()
  const facts: string[] = []
  for (const file of files) {
    const output = await readFile(file, 'utf8')
    const cells = cellsOf(output, scenarios)
    for (const cell of cells) found.set(cell.scenario.name, cell)
    facts.push(
      `a run with ${/^seed \d+/m.exec(output)?.[0] ?? 'an unknown seed'}: ${cells.length} rows`,
    )
  }
  const cells = scenarios.flatMap(({ name }) => found.get(name) ?? [])
  const missing = scenarios.length - cells.length
  return { cells, facts: missing === 0 ? facts : [...facts, `${missing} rows were not run`] }
}
