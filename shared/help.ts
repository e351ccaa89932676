// What the two command lines have in common: the EXIT STATUS section, how a usage error reads, and who wants JSON.

import { Parser } from 'yargs/helpers'
import { Failure, FAILURES } from './failures.ts'

/** The EXIT STATUS section of `--help`, from the failure table. */
export function exitStatusHelp(): string {
  const rows = [{ exit: 0, meaning: 'success' }, ...Object.values(FAILURES)]
  const lines = rows.map(({ exit, meaning }) => `  ${String(exit).padStart(3)}  ${meaning}`)
  return ['EXIT STATUS', ...lines].join('\n')
}

/** One versioned object of `--json`. @param command as typed, or `error` */
export function asJson(command: string, data: object): string {
  return JSON.stringify({ schema: 1, command, ...data })
}

/** Whether a command line asks for JSON, in every way that yargs takes it; also one that it could not parse. */
export function wantsJson(argv: readonly string[]): boolean {
  return Parser([...argv], { boolean: ['json'] })['json'] === true
}

/** A failure inside `--json`. */
export function failureJson({ code, exit, retry, message, hint }: Failure): object {
  return { code, exit, retry, message, hint }
}

/** What yargs says, and how a person would. */
const REWORDED: readonly (readonly [RegExp, string])[] = [
  [
    /^Not enough non-option arguments: got (\d+), need at least (\d+)/,
    'too few words after the command: $1 given, $2 needed',
  ],
  [/^Missing required arguments?: (.+)/, 'missing: --$1'],
]

/** For yargs' `.fail`: every wrong word becomes one sentence, what it threw stays as it is. */
export function usageFailure(
  program: string,
): (message: string | null, error: Error | undefined) => never {
  return (message, error) => {
    if (error) throw error
    const said = (message ?? 'wrong usage').replaceAll('\n', ' ')
    const text = REWORDED.reduce((text, [from, to]) => text.replace(from, to), said)
    throw new Failure('USAGE', text, {
      remedy: `see: ${program} --help, and ${program} COMMAND --help`,
    })
  }
}
