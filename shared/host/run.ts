// Child processes of the host's own tools: argument arrays, a deadline, C locale, and stderr's last line as the reason.

import { execa } from 'execa'

export interface RunResult {
  readonly exitCode: number | undefined
  readonly stdout: string
  readonly stderr: string
  readonly timedOut: boolean
}

export interface RunOptions {
  readonly signal?: AbortSignal | undefined
  /** Milliseconds after which the child is killed; default 60 s. */
  readonly timeoutMs?: number | undefined
  readonly input?: string | undefined
}

/** Runs a program to its end and never throws for its exit status; a program that cannot start gives 127. */
export async function run(
  file: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<RunResult> {
  const result = await execa(file, args, {
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
    stderr: notStarted ? `${file}: not installed` : result.stderr,
    timedOut: result.timedOut,
  }
}

/** The sentence that explains a failed child: the last `error:` line of stderr, or its last line. */
export function reasonOf(result: RunResult): string {
  if (result.timedOut) return 'timed out'
  const lines = result.stderr.split('\n').filter(line => line.trim() !== '')
  const errors = lines.filter(line => line.startsWith('error: '))
  const line = errors.at(-1) ?? lines.at(-1) ?? `exit status ${String(result.exitCode)}`
  return line.replace(/^error: /, '').trim()
}
