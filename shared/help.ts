// What the two command lines have in common: the EXIT STATUS section, and how a usage error reads.

import { Failure, FAILURES } from './failures.ts'

/** The EXIT STATUS section of `--help`, from the failure table. */
export function exitStatusHelp(): string {
  const rows = Object.values(FAILURES).map(
    ({ exit, meaning }) => `  ${String(exit).padStart(3)}  ${meaning}`,
  )
  return ['EXIT STATUS', '    0  ok', ...rows].join('\n')
}

/** For yargs' `.fail`: every wrong word becomes one sentence, what it threw stays as it is. */
export function usageFailure(
  program: string,
): (message: string | null, error: Error | undefined) => never {
  return (message, error) => {
    if (error) throw error
    throw new Failure('USAGE', (message ?? 'wrong usage').replaceAll('\n', ' '), {
      remedy: `see: ${program} --help`,
    })
  }
}
