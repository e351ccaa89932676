// What runs on the machine, read from /proc.

import { readdirSync, readFileSync, statSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { Failure } from '../../shared/failures.ts'

export interface Process {
  readonly pid: number
  readonly parent: number
  readonly command: string
  /** Clock ticks after boot: with the process id it names one process for ever. */
  readonly started: string
  readonly zombie: boolean
}

/** @returns undefined when there is no such process (any more) */
export function readProcess(pid: number): Process | undefined {
  let stat: string
  try {
    stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
  } catch {
    return undefined
  }
  // The command may contain spaces and brackets; the fields after it cannot.
  const end = stat.lastIndexOf(')')
  const fields = stat.slice(end + 2).split(' ')
  return {
    pid,
    parent: Number(fields[1]),
    command: stat.slice(stat.indexOf('(') + 1, end),
    started: fields[19] ?? '',
    zombie: fields[0] === 'Z' || fields[0] === 'X',
  }
}

export function listProcesses(): Process[] {
  return readdirSync('/proc')
    .filter(name => /^\d+$/.test(name))
    .map(name => readProcess(Number(name)))
    .filter(process => process !== undefined)
}

/** Whether exactly this process still runs. */
export function isAlive(process: Pick<Process, 'pid' | 'started'>): boolean {
  const now = readProcess(process.pid)
  return now !== undefined && !now.zombie && now.started === process.started
}

/** The inode that identifies a namespace of a process. */
export function namespaceInode(path: string): number | undefined {
  try {
    return statSync(path).ino
  } catch {
    return undefined
  }
}

/** Sends a signal; a process that is gone already is fine. */
export function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
  }
}

/** Asks until `check` gives something. @param what completes "waited N s for ..." */
export async function waitFor<T>(
  what: string,
  seconds: number,
  check: () => T | undefined | false | Promise<T | undefined | false>,
): Promise<T> {
  const deadline = Date.now() + seconds * 1000
  for (;;) {
    const answer = await check()
    if (answer !== undefined && answer !== false) return answer
    if (Date.now() > deadline)
      throw new Failure('INTERNAL', `the lab waited ${seconds} s in vain for ${what}`)
    await sleep(50)
  }
}
