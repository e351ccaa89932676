// Child processes of the host's own tools: argument arrays, a deadline, C locale, and stderr's last line as the reason.

import { execa } from 'execa'

export interface RunResult {
  readonly exitCode: number | undefined
  readonly stdout: string
  readonly stderr: string
  readonly timedOut: boolean
  /** The signal that ended it, e.g. `SIGKILL`. */
  readonly signal: string | undefined
}

export interface RunOptions {
  readonly signal?: AbortSignal | undefined
  /** Milliseconds after which the child is killed; default 60 s, 0 for none. */
  readonly timeoutMs?: number | undefined
  readonly input?: string | undefined
  /** The kernel kills the child when we die, however we die: what it was doing is not done behind a successor's back. */
  readonly diesWithUs?: boolean | undefined
}

/** Runs a program to its end and never throws for its exit status; a program that cannot start gives 127. */
export async function run(
  file: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<RunResult> {
  const [program, argv] = options.diesWithUs
    ? ['setpriv', ['--pdeathsig', 'KILL', '--', file, ...args]]
    : [file, args]
  const result = await execa(program, argv, {
    reject: false,
    timeout: options.timeoutMs ?? 60_000,
    env: { LC_ALL: 'C' },
    maxBuffer: 64 * 1024 * 1024,
    ...(options.input === undefined ? { stdin: 'ignore' } : { input: options.input }),
    ...(options.signal === undefined ? {} : { cancelSignal: options.signal }),
  })
  options.signal?.throwIfAborted()
  const notStarted = result.exitCode === undefined && result.code === 'ENOENT'
  return {
    exitCode: notStarted ? 127 : result.exitCode,
    stdout: result.stdout,
    stderr: notStarted ? `${program}: not installed` : result.stderr,
    timedOut: result.timedOut,
    signal: result.signal,
  }
}

/** The sentence that explains a failed child: the last `error:` line of stderr, or its last line. */
export function reasonOf(result: RunResult): string {
  if (result.timedOut) return 'timed out'
  if (result.signal !== undefined) return `killed by ${result.signal}`
  const lines = result.stderr.split('\n').filter(line => line.trim() !== '')
  const errors = lines.filter(line => line.startsWith('error: '))
  const line = errors.at(-1) ?? lines.at(-1) ?? `exit status ${String(result.exitCode)}`
  return line.replace(/^error: /, '').trim()
}
