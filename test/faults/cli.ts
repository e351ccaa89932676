// `npm run test:faults`: every fault of the table, one line each; exit 1 when one does harm.

import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import yargs from 'yargs'
import { hideBin } from 'yargs/helpers'
import { describeFailure, Failure, toFailure } from '../../shared/failures.ts'
import { ROOT } from '../lab/names.ts'
import { factsOf, line, page, summary } from './report.ts'
import { Runner } from './runner.ts'
import { diceOf, type Cell, type Chance, type Scenario } from './scenario.ts'
import { cellsOfFiles } from './outputs.ts'
import { chosen, SCENARIOS } from './table.ts'

const PAGE = join(ROOT, 'docs', 'faults.md')
const say = (text: string): void => void process.stdout.write(`${text}\n`)

const options = await yargs(hideBin(process.argv))
  .scriptName('npm run test:faults --')
  .usage(
    '$0 [OPTIONS]\n\nBreaks a session in every way of the table, and checks what is left. Root only.',
  )
  .option('only', {
    type: 'string',
    description: 'only these rows or groups of rows, comma-separated',
  })
  .option('list', { type: 'boolean', default: false, description: 'print the names of the rows' })
  .option('save', { type: 'boolean', default: false, description: 'also write docs/faults.md' })
  .option('table', {
    type: 'string',
    description: 'only write docs/faults.md from the saved outputs of runs, comma-separated',
  })
  .option('seed', { type: 'number', description: 'of everything random; printed when left out' })
  .option('rounds', { type: 'number', description: 'of the rows that repeat themselves' })
  .strict()
  .help()
  .parseAsync()

const stop = new AbortController()
for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const)
  process.on(name, () => {
    process.stderr.write('test:faults: taking the lab down\n')
    stop.abort(new Failure('INTERRUPTED', `ended by ${name}`, { remedy: 'nothing of it is left' }))
  })

try {
  process.exitCode = await main()
} catch (error) {
  const failure = toFailure(error)
  process.stderr.write(`${describeFailure('test:faults', failure)}\n`)
  // The row that was interrupted has still something to wait for.
  process.exit(failure.exit)
}

async function main(): Promise<number> {
  const rows = chosen(options.only?.split(','))
  if (rows.length === 0)
    throw new Failure('USAGE', `no row is called ${options.only ?? ''}`, { remedy: 'see --list' })
  if (options.save && options.only !== undefined)
    throw new Failure('USAGE', '--save writes the whole table, so it does not go with --only')
  if (options.list) {
    for (const { name, step, fault } of rows) say(`${name.padEnd(32)} ${step}: ${fault}`)
    return 0
  }
  if (options.table !== undefined) {
    const { cells, facts } = await cellsOfFiles(options.table.split(','), SCENARIOS)
    await writeFile(PAGE, page(cells, [...(await factsOf()), ...facts]))
    say(summary(cells))
    return 0
  }
  const seed = options.seed ?? Date.now() % 1_000_000
  say(`seed ${seed}`)
  const began = performance.now()
  // What needs no lab goes on beside it, with dice of its own, so that a seed says the same each time.
  const [inLab, alone] = await Promise.all(
    [rows.filter(row => !('alone' in row)), rows.filter(row => 'alone' in row)].map(lane =>
      runLane(lane, { dice: diceOf(seed), rounds: options.rounds }),
    ),
  )
  const cells = [...(inLab ?? []), ...(alone ?? [])]
  say(summary(cells))
  if (options.save) {
    const minutes = (performance.now() - began) / 60_000
    const run = `seed ${seed}, ${minutes.toFixed(0)} minutes`
    await writeFile(PAGE, page(cells, [...(await factsOf()), run]))
  }
  return cells.some(({ wrong }) => wrong.length > 0) ? 1 : 0
}

/** Runs rows one after the other. */
async function runLane(rows: readonly Scenario[], chance: Chance): Promise<Cell[]> {
  const cells: Cell[] = []
  await using runner = new Runner(chance)
  for (const scenario of rows) {
    const cell = await interruptible(runner.run(scenario))
    cells.push(cell)
    say(line(cell))
  }
  return cells
}

/** Fails as soon as the run is interrupted; the lab goes with the runner then. */
async function interruptible<T>(work: Promise<T>): Promise<T> {
  stop.signal.throwIfAborted()
  let end: (() => void) | undefined
  const ended = new Promise<never>((_, reject) => {
    end = () => reject(toFailure(stop.signal.reason))
    stop.signal.addEventListener('abort', end)
  })
  return Promise.race([work, ended]).finally(() => {
    if (end) stop.signal.removeEventListener('abort', end)
  })
}
