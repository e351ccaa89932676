// `npm run bench`: our full pull against other programs, interleaved in one run on the same files. Asserts no speed.

import { mkdir, readFile, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import yargs from 'yargs'
import { hideBin } from 'yargs/helpers'
import { Cleanup } from '../../shared/cleanup.ts'
import { describeFailure, Failure, toFailure } from '../../shared/failures.ts'
import { ROOT } from '../lab/names.ts'
import { runGroup } from './measure.ts'
import { describeMachine, note, resultOf, table, type Result } from './report.ts'
import { otherPrograms, ourPull, type Row, type Run } from './rows.ts'
import { DELTA_NAMES, DELTA_SPACE, deltaRows } from './delta.ts'
import { LEVEL_NAMES, LEVELS_SPACE, levels } from './levels.ts'
import { REAL_NAMES, REAL_SPACE, realRows } from './real.ts'
import { resumed, tebibyte } from './single.ts'
import { storeRows } from './store.ts'
import * as virtnbdbackup from './virtnbdbackup.ts'
import { FAR, farRows } from './far.ts'
import { WAYS, waysRows } from './ways.ts'
import {
  HALF,
  makeFolder,
  makeImage,
  serve,
  SPACE,
  STORE_SPACE,
  warm,
  WIDE,
  type Served,
} from './world.ts'

const NAMES = [
  'pull',
  'nbdcopy',
  'nbdcopy-flush',
  'nbdcopy-sha256sum',
  'nbdcopy-both-sums',
  'nbdcopy-openssl',
  'qemu-img',
  'virtnbdbackup',
  ...WAYS,
  ...FAR,
  'resumed',
  'pull-64g',
  'pull-1t',
  ...LEVEL_NAMES,
  ...DELTA_NAMES,
  ...REAL_NAMES,
  'store',
]
const ABOUT = [
  'Image: 4 GiB, the first half random data, the second half a hole; in the page cache. Server: nbd-server, one',
  'process per connection, on a Unix socket. Ours: the whole `clone pull` as a fresh process with a fresh clone (gate,',
  'copy, SHA-256 of every MiB, fsync, read-back with O_DIRECT where there is, publish); the gate is that of the tests, so',
  'no domain is frozen or merged. Medians; the rows take turns; files are synced and removed between runs, off the clock.',
  'Times ours above 1: slower than our whole pull. CPU and memory are those of the client, not of the server.',
  'delta: a disk of random data; after a pull of all of it, pulls of what changed. "read": what came by NBD.',
  'inc, mixed, domains: real domains in the lab, frozen and merged by the product, pulled over tcp by the other host, gate by ssh.',
  'ssh-Nms, tcp-Nms: through a proxy that carries 1 Gbit/s, delays by N ms there and back, and lets each connection have 3 MiB under way.',
  'ssh, tls, tcp: on loopback, with a real sshd, the relays and the TLS listener of the product. limit: its copy ought to take 10.24 s.',
]

/** A gigabit a second takes its time. */
const FAR_ROUNDS = 3

const say = (line: string): void => void process.stdout.write(`${line}\n`)

const ABOUT_STORE = [
  'Store: one clone of 200 generations, each of 10 disks of 64 MiB (4 KiB of data, else holes), in the page cache. Each run is a',
  'fresh process; the commands take turns. start-up is that of the program alone.',
]

const options = await yargs(hideBin(process.argv))
  .scriptName('npm run bench --')
  .usage('$0 [OPTIONS]\n\nOur full pull against other programs. Root only.')
  .option('only', { type: 'string', array: true, choices: NAMES, description: 'only these rows' })
  .option('quick', { type: 'boolean', default: false, description: '3 rounds instead of 7' })
  .option('save', { type: 'boolean', default: false, description: 'also write docs/bench/DATE.md' })
  .option('dir', {
    type: 'string',
    default: '/var/tmp',
    description: 'where the images go: the file system that is measured; wants 38 GiB',
  })
  .strict()
  .help()
  .parseAsync()
const wanted = (name: string): boolean => options.only?.includes(name) ?? true
const rounds = options.quick ? 3 : 7

const stop = new AbortController()
for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const)
  process.on(name, () =>
    stop.abort(new Failure('INTERRUPTED', `ended by ${name}`, { remedy: 'nothing of it is left' })),
  )

try {
  const lines = await bench(stop.signal)
  if (options.save) note(`saved as ${await save(lines)}`)
} catch (error) {
  const failure = toFailure(error)
  process.stderr.write(`${describeFailure('bench', failure)}\n`)
  process.exitCode = failure.exit
}

async function bench(signal: AbortSignal): Promise<string[]> {
  await using cleanup = new Cleanup()
  const onlyStore = NAMES.every(name => wanted(name) === (name === 'store'))
  const space =
    SPACE +
    Math.max(
      DELTA_NAMES.some(wanted) ? DELTA_SPACE : 0,
      REAL_NAMES.some(wanted) ? REAL_SPACE : 0,
      LEVEL_NAMES.some(wanted) ? LEVELS_SPACE : 0,
    )
  const folder = await makeFolder(options.dir, cleanup, onlyStore ? STORE_SPACE : space)
  const machine = await describeMachine(folder)
  for (const line of machine) say(line)
  const lines = onlyStore ? [] : await benchPulls(folder, cleanup, signal)
  if (wanted('store')) lines.push(...(await benchStore(folder, signal)))
  return [...machine, ...lines]
}

async function benchStore(folder: string, signal: AbortSignal): Promise<string[]> {
  note('making the store')
  const results = await storeRows(folder, rounds, signal)
  const lines = ['', ...ABOUT_STORE, '', table(results, undefined), '', `${rounds} rounds.`]
  for (const line of lines) say(line)
  return lines
}

/** Our pull and other programs on the same image. */
async function benchPulls(
  folder: string,
  cleanup: Cleanup,
  signal: AbortSignal,
): Promise<string[]> {
  const lines = ['', ...ABOUT, '']
  for (const line of lines) say(line)

  note('making the image')
  const image = path.join(folder, 'half')
  await makeImage(image, HALF, signal)
  const served = await serve(folder, image, cleanup)
  const results = new Map<string, Result>()
  const rows = [
    ourPull('pull', 'clone pull: copied, hashed, synced, read back, published', folder, served),
    ...otherPrograms(folder, served),
  ].filter(({ name }) => wanted(name))
  const far: Row[] = []
  if ([...WAYS, ...FAR].some(wanted)) {
    const { rows: nearRows, ways } = await waysRows(folder, served, cleanup)
    rows.push(...nearRows.filter(({ name }) => wanted(name)))
    if (FAR.some(wanted)) far.push(...(await farRows(folder, served, ways, cleanup)))
  }
  for (const result of await turnsWithLab(rows, folder, served, signal))
    results.set(result.name, result)
  const wantedFar = far.filter(({ name }) => wanted(name))
  for (const result of await takeTurns(wantedFar, served, signal, FAR_ROUNDS))
    results.set(result.name, result)
  if (wanted('pull-64g')) {
    note('making the 64 GiB image')
    const wide = await pullWide(folder, cleanup, signal)
    results.set(wide.name, wide)
  }

  if (wanted('resumed'))
    results.set('resumed', await resumed(folder, served, Math.min(rounds, 3), signal))
  if (wanted('pull-1t'))
    for (const result of await tebibyte(folder, cleanup, signal)) results.set(result.name, result)
  for await (const level of levels(folder, wanted, cleanup, signal))
    for (const result of await takeTurns(level.rows, level.served, signal, Math.min(rounds, 5)))
      results.set(result.name, { ...result, otherImage: true })
  const few = Math.min(rounds, 5)
  const changes: Result[] = []
  for (const group of DELTA_NAMES.filter(wanted))
    changes.push(...(await deltaRows(group, folder, few, cleanup, signal)))
  const real = REAL_NAMES.some(wanted)
    ? await realRows(folder, wanted, few, signal)
    : { results: [], guest: [] }
  const sorted = [...NAMES.map(name => results.get(name)), ...changes, ...real.results].filter(
    one => one !== undefined,
  )
  const commands = sorted
    .filter(({ command = '' }) => command !== '')
    .map(({ name, command }) => `  ${name.padEnd(22)} ${command ?? ''}`)
  const report = [
    table(sorted, results.get('pull')),
    '',
    ...sorted.flatMap(({ name, why }) =>
      why === undefined ? [] : [`${name} did not run: ${why}`],
    ),
    `${rounds} rounds; far ones, resumed and what costs minutes fewer, pull-64g and pull-1t 1. Commands ($1: nbd+unix:///disk?socket=..., $2: the output file):`,
    ...commands,
    '',
    ...real.guest,
  ]
  for (const line of report) say(line)
  return [...lines, ...report]
}

/** The rows of one image; virtnbdbackup's has a lab for as long as they take. */
async function turnsWithLab(
  rows: readonly Row[],
  folder: string,
  served: Served,
  signal: AbortSignal,
): Promise<Result[]> {
  const { NAME: name, virtnbdbackupRow } = virtnbdbackup
  await using cleanup = new Cleanup()
  if (wanted(name)) note('making the lab for virtnbdbackup')
  const row = wanted(name)
    ? await virtnbdbackupRow(folder, served.image, cleanup, signal)
    : undefined
  const all = typeof row === 'object' ? [...rows, row] : rows
  await warm(served.image, signal)
  const results = await takeTurns(all, served, signal, rounds)
  if (typeof row === 'string')
    results.push({ name, title: 'virtnbdbackup -l copy', runs: [], why: row })
  return results
}

/** Every row once per round, each round starting with another row. */
async function takeTurns(
  rows: readonly Row[],
  { image }: Served,
  signal: AbortSignal,
  rounds: number,
): Promise<Result[]> {
  const runs = new Map<Row, Run[]>(rows.map(row => [row, []]))
  for (let round = 0; round < rounds; round++)
    for (let turn = 0; turn < rows.length; turn++) {
      const row = rows[(round + turn) % rows.length]
      if (!row) continue
      const run = await once(row, image, round === 0, signal)
      runs.get(row)?.push(run)
      note(`round ${round + 1} of ${rounds}: ${row.name} ${run.seconds.toFixed(2)} s`)
    }
  return rows.map(row => resultOf(row, runs.get(row) ?? []))
}

/** One run; nothing of the run before it is left to be written, and nothing of this one stays. */
async function once(row: Row, image: string, compare: boolean, signal: AbortSignal): Promise<Run> {
  await row.clear()
  await runGroup(['sync'], signal)
  await sleep(200, undefined, { signal })
  const run = await row.run(signal)
  if (compare && row.copy !== undefined) await runGroup(['cmp', image, row.copy], signal)
  await row.clear()
  return run
}

async function pullWide(folder: string, cleanup: Cleanup, signal: AbortSignal): Promise<Result> {
  const image = path.join(folder, 'wide')
  await makeImage(image, WIDE, signal)
  const served = await serve(folder, image, cleanup)
  const row = ourPull('pull-64g', 'clone pull of 64 GiB, 2 GiB of it data', folder, served)
  const run = await once(row, image, false, signal)
  note(`${row.name} ${run.seconds.toFixed(2)} s`)
  return { ...resultOf(row, [run]), otherImage: true }
}

async function save(lines: readonly string[]): Promise<string> {
  const { version } = JSON.parse(await readFile(path.join(ROOT, 'package.json'), 'utf8')) as {
    version: string
  }
  const day = new Date().toISOString().slice(0, 10)
  const file = path.join('docs', 'bench', `${day}.md`)
  await mkdir(path.join(ROOT, 'docs', 'bench'), { recursive: true })
  const text = [`# npm run bench, nbd-clone ${version}, ${day}`, '', '```', ...lines, '```', '']
  await writeFile(path.join(ROOT, file), text.join('\n'))
  return file
}
