// One program run under GNU time: seconds, CPU, peak memory. Its whole process group ends with the bench.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { Failure } from '../../shared/failures.ts'
import { childEnvironment } from '../lab/environment.ts'

export interface Measured {
  /** Wall clock. */
  readonly seconds: number
  /** User and system time of the program and its children, not of the server it reads from. */
  readonly cpuSeconds: number
  /** Largest resident set of any one of its processes, threads included. */
  readonly peakBytes: number
  readonly stdout: string
}

/** Between SIGTERM and SIGKILL. */
const GRACE_MS = 5_000
const KEPT = 64 * 1024

/**
 * Runs `argv` and waits for it.
 * @param folder for time's report. @param enter wraps the timed argv, to run it somewhere else
 * @throws Failure INTERNAL with its last words when it fails; the signal's reason
 */
export async function measure(
  argv: readonly string[],
  folder: string,
  signal: AbortSignal,
  enter: (argv: string[]) => string[] = one => one,
): Promise<Measured> {
  const report = path.join(folder, 'time')
  const stdout = await runGroup(
    enter(['/usr/bin/time', '-q', '-f', '%e %U %S %M', '-o', report, ...argv]),
    signal,
  )
  const text = (await readFile(report, 'utf8')).trim().split('\n').at(-1) ?? ''
  const [seconds = NaN, user = NaN, system = NaN, kib = NaN] = text.split(' ').map(Number)
  return { seconds, cpuSeconds: user + system, peakBytes: kib * 1024, stdout }
}

/** Runs `argv` unmeasured. @returns its stdout. @throws as `measure` */
export async function runGroup(argv: readonly string[], signal: AbortSignal): Promise<string> {
  signal.throwIfAborted()
  const [file = '', ...args] = argv
  // A group of its own: Ctrl-C reaches only the bench, which then ends the group.
  const child = spawn(file, args, {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...childEnvironment(), LC_ALL: 'C' },
    detached: true,
  })
  const endGroup = (how: NodeJS.Signals): void => {
    if (child.pid === undefined) return
    try {
      process.kill(-child.pid, how)
    } catch {
      // It has ended.
    }
  }
  let late: NodeJS.Timeout | undefined
  const onAbort = (): void => {
    endGroup('SIGTERM')
    late = setTimeout(() => endGroup('SIGKILL'), GRACE_MS)
  }
  const onExit = (): void => endGroup('SIGKILL')
  signal.addEventListener('abort', onAbort, { once: true })
  process.once('exit', onExit)
  let stdout = ''
  let stderr = ''
  child.stdout.on('data', (part: Buffer) => (stdout = (stdout + part.toString()).slice(-KEPT)))
  child.stderr.on('data', (part: Buffer) => (stderr = (stderr + part.toString()).slice(-KEPT)))
  try {
    const [code, how] = (await once(child, 'close')) as [number | null, string | null]
    signal.throwIfAborted()
    if (code === 0) return stdout
    const words = (stderr.trim() || stdout.trim()).split('\n').slice(-3).join(' / ')
    throw new Failure('INTERNAL', `${argv.join(' ')} ended with ${how ?? String(code)}: ${words}`)
  } finally {
    clearTimeout(late)
    signal.removeEventListener('abort', onAbort)
    process.off('exit', onExit)
  }
}
