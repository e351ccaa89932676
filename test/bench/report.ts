// What the bench prints: the machine, the programs, and one table of medians.

import { execa } from 'execa'
import { cpus, loadavg, release, totalmem } from 'node:os'
import Table from 'cli-table3'
import { formatSize } from '../../shared/quantities.ts'
import type { Row, Run } from './rows.ts'

/** A row's runs, or in words why it has none. */
export interface Result {
  readonly name: string
  readonly title: string
  readonly command?: string
  readonly runs: readonly Run[]
  readonly why?: string
  /** It copied more than the others, so a ratio would say nothing. */
  readonly otherImage?: boolean
}

export const resultOf = ({ name, title, command }: Row, runs: readonly Run[]): Result => ({
  name,
  title,
  command,
  runs,
})

const PROGRAMS: readonly (readonly string[])[] = [
  ['node', '--version'],
  ['nbd-server', '-V'],
  ['nbdcopy', '--version'],
  ['qemu-img', '--version'],
  ['sha256sum', '--version'],
  ['openssl', 'version'],
  ['virtnbdbackup', '--version'],
  ['rsync', '--version'],
]

/** Progress, beside the report. */
export const note = (line: string): void => void process.stderr.write(`bench: ${line}\n`)

export async function describeMachine(folder: string): Promise<string[]> {
  const [cpu] = cpus()
  const fileSystem = await firstLine(['stat', '-f', '-c', '%T', folder])
  const programs = await Promise.all(
    PROGRAMS.map(async ([name = '', ...args]) => {
      const line = await firstLine([name, ...args])
      return `${name} ${/v?(\d+(?:\.\d+)+[a-z]?\b)/.exec(line)?.[1] ?? 'not installed'}`
    }),
  )
  const busy = loadavg()[0] ?? 0
  return [
    `date      ${new Date().toISOString()}`,
    `machine   ${cpus().length} cores (${cpu?.model.trim() ?? 'unknown'}), ${formatSize(totalmem())} memory, Linux ${release()}, ${fileSystem}`,
    `programs  ${programs.join(', ')}`,
    `load      ${busy.toFixed(2)}${busy > 0.5 ? ': the machine is not idle, so read seconds with care' : ''}`,
  ]
}

const NO_LINES = Object.fromEntries(
  ['top', 'bottom', 'mid', 'left', 'right']
    .flatMap(side => [side, `${side}-mid`, `${side}-left`, `${side}-right`])
    .concat('middle')
    .map(name => [name, '']),
)

/** @param ours the row that the others are compared with; undefined when it did not run */
export function table(results: readonly Result[], ours: Result | undefined): string {
  const ourSeconds = ours && median(ours.runs.map(run => run.seconds))
  const made = new Table({
    head: ['row', 'what', 'seconds', 'least to most', 'times ours', 'CPU s', 'peak memory'],
    style: { head: [], border: [], 'padding-left': 0, 'padding-right': 2 },
    chars: NO_LINES,
    colAligns: ['left', 'left', 'right', 'right', 'right', 'right', 'right'],
  })
  for (const { name, title, runs, otherImage = false } of results) {
    if (runs.length === 0) {
      made.push([name, title, 'not run', '', '', '', ''])
      continue
    }
    const line = (what: [string, string], seconds: readonly number[], rest: [string, string]) => {
      const middle = median(seconds)
      const compared = ourSeconds !== undefined && !otherImage
      const ratio = compared ? (middle / ourSeconds).toFixed(2) : ''
      const spread = `${Math.min(...seconds).toFixed(2)} to ${Math.max(...seconds).toFixed(2)}`
      made.push([...what, middle.toFixed(2), spread, ratio, ...rest])
    }
    const cpu = median(runs.map(run => run.cpuSeconds)).toFixed(2)
    const peak = Math.max(...runs.map(run => run.peakBytes))
    const seconds = runs.map(run => run.seconds)
    line([name, title], seconds, [cpu, formatSize(Math.round(peak))])
    const phases = runs.map(run => run.phases).filter(one => one !== undefined)
    if (phases.length === 0) continue
    const of = (...names: string[]): number[] =>
      phases.map(one => names.reduce((sum, phase) => sum + (one[phase] ?? 0), 0))
    const known = of('copy', 'verify')
    const others = seconds.map((all, at) => all - (known[at] ?? 0))
    line(['', '  of it: the copy alone (receive, hash, write)'], of('copy'), ['', ''])
    line(['', '  of it: fsync and read-back'], of('verify'), ['', ''])
    line(['', '  of it: the rest (start, gate, connect, publish)'], others, ['', ''])
  }
  return made
    .toString()
    .split('\n')
    .map(line => line.trimEnd())
    .join('\n')
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length / 2
  const [low = NaN, high = NaN] = [sorted[Math.ceil(middle) - 1], sorted[Math.floor(middle)]]
  return (low + high) / 2
}

async function firstLine([file = '', ...args]: readonly string[]): Promise<string> {
  const { all } = await execa(file, args, { reject: false, all: true, stdin: 'ignore' })
  return all.split('\n')[0] ?? ''
}
