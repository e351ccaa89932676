// `clone` commands in this process: the real command line and the real commands, without the half second of a new Node each.

import { pino } from 'pino'
import { NOBODY, type Watcher } from '../../client/attempt.ts'
import { claimCommand, releaseCommand } from '../../client/commands/claim.ts'
import { exportCommand } from '../../client/commands/export.ts'
import { pruneCommand } from '../../client/commands/prune.ts'
import { pullCommand } from '../../client/commands/pull.ts'
import { rollbackCommand } from '../../client/commands/rollback.ts'
import { statusCommand } from '../../client/commands/status.ts'
import { verifyCommand } from '../../client/commands/verify.ts'
import { cloneConfig, loadConfig } from '../../client/config/effective.ts'
import { program, type Command } from '../../client/program.ts'
import { pullJson } from '../../client/render.ts'
import { describeFailure, Failure, toFailure } from '../../shared/failures.ts'
import type { Ran } from './standby.ts'

const log = pino({ level: 'silent' })

/** How a command may be interrupted and watched. */
export interface Handling {
  readonly signal?: AbortSignal
  readonly watcher?: Watcher
}

/** @returns undefined for a command that only the program itself can do */
export async function inProcess(
  argv: readonly string[],
  { signal = new AbortController().signal, watcher = NOBODY }: Handling = {},
): Promise<Ran | undefined> {
  let ran: Ran | undefined
  try {
    await program(argv, async command => {
      ran = await perform(command, signal, watcher)
    }).parseAsync()
    return ran
  } catch (error) {
    const failure = toFailure(error)
    return { code: failure.exit, stdout: '', stderr: describeFailure('clone', failure) }
  }
}

async function perform(
  command: Command,
  signal: AbortSignal,
  watcher: Watcher,
): Promise<Ran | undefined> {
  const config = loadConfig(command.config)
  const good = (data: object): Ran => ({ code: 0, stdout: JSON.stringify(data), stderr: '' })
  switch (command.name) {
    case 'pull': {
      const { results, exit } = await pullCommand(config, command, log, signal, () => watcher)
      const failures = results.flatMap(one => (one.outcome === 'failed' ? [one.failure] : []))
      const stderr = failures.map(failure => describeFailure('clone', failure)).join('\n')
      return { code: exit, stdout: JSON.stringify(pullJson(results, exit)), stderr }
    }
    case 'status':
      return good({
        clones: await statusCommand(command.domains.map(at => cloneConfig(config, at))),
      })
    case 'prune':
      return good(await pruneCommand(cloneConfig(config, command.domain), command.dryRun))
    case 'verify': {
      const clone = cloneConfig(config, command.domain)
      const verified = await verifyCommand(clone, command.generation, signal, watcher)
      if (verified.sound) return good(verified)
      throw new Failure('INTEGRITY', `damaged: ${JSON.stringify(verified.disks)}`)
    }
    case 'rollback': {
      const clone = cloneConfig(config, command.domain)
      return good(await rollbackCommand(clone, command.generation, command.dryRun, signal, watcher))
    }
    case 'claim':
    case 'release': {
      const act = command.name === 'claim' ? claimCommand : releaseCommand
      const clone = cloneConfig(config, command.domain)
      return good(await act(clone, command.generation, command.purpose))
    }
    case 'export':
      return good(
        await exportCommand(cloneConfig(config, command.domain), command, signal, watcher),
      )
    default:
      return undefined
  }
}
