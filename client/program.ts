// The command line of `clone` as yargs knows it: commands, options, examples, exit status. Runs and prints nothing.

import yargs, { type Argv } from 'yargs'
import { exitStatusHelp, usageFailure } from '../shared/help.ts'
import { LOG_LEVELS } from '../shared/log-level.ts'
import { parseDuration } from '../shared/quantities.ts'
import { parseRate } from '../shared/timetable.ts'
import { VERSION } from '../shared/version.ts'
import { acceptNewHostKey, dryRun, global, type Handle } from './command.ts'
import { CONFIG_FILE } from './config/effective.ts'
import { generationCommands } from './program-generations.ts'

export type { Command } from './command.ts'

/**
 * The parser. `parseAsync()` calls `handle` with the command; `getHelp()` and the like work without one.
 * @throws (from parseAsync) Failure USAGE
 */
export function program(
  argv: readonly string[] = [],
  handle: Handle = () => Promise.resolve(),
): Argv {
  const domains = (y: Argv, description: string) =>
    y.positional('domains', { type: 'string', array: true, default: [] as string[], description })
  const parser = yargs([...argv])
    .scriptName('clone')
    .usage(
      '$0 COMMAND [OPTIONS]\n\nPulls verified clones of running libvirt domains onto this standby host.',
    )
    .command(
      'pull [domains..]',
      'pull domains into their clones',
      y =>
        domains(y, 'which domains to pull')
          .option('all', {
            type: 'boolean',
            default: false,
            description: 'every domain of standby.yaml',
          })
          .option('if-due', {
            type: 'boolean',
            default: false,
            description: 'do nothing while the newest generation is younger than half the RPO',
          })
          .option('adopt', {
            type: 'boolean',
            default: false,
            description:
              'bind the clone to this source and domain, although it belonged to another',
          })
          .option('full', {
            type: 'boolean',
            default: false,
            description: 'read and write every byte, whatever the clone has',
          })
          .option('compare', {
            type: 'boolean',
            default: false,
            description: 'compare all by hash, although the source may know what changed',
          })
          .option('trust-tracking', {
            type: 'boolean',
            default: false,
            description: 'believe the source again, after an audit found it wrong',
          })
          .option('max-duration', {
            type: 'string',
            description: 'stop each pull that has not read everything after so long, e.g. 4h',
          })
          .option('limit-rate', {
            type: 'string',
            description: 'read no faster than so much in all, e.g. 20MiB/s; off: no limit',
          })
          .option('accept-new-host-key', acceptNewHostKey)
          .option('dry-run', dryRun),
      async args => {
        const { ifDue, all, adopt, full, dryRun, domains, acceptNewHostKey, maxDuration } = args
        const { compare, trustTracking } = args
        const maxDurationMs =
          maxDuration === undefined ? undefined : parseDuration('--max-duration', maxDuration)
        const limitRate =
          args.limitRate === undefined ? undefined : parseRate('--limit-rate', args.limitRate)
        await handle({
          ...{ name: 'pull', ...global(args), domains, all, ifDue, adopt, full, dryRun },
          ...{ acceptNewHostKey, maxDurationMs, limitRate, compare, trustTracking },
        })
      },
    )
    .command(
      'status [domains..]',
      'show how old each clone is against its RPO',
      y => domains(y, 'which domains to show; all when none is named'),
      args => handle({ name: 'status', ...global(args), domains: args.domains }),
    )

  return generationCommands(parser, handle)
    .command('config', 'check or show the configuration', y =>
      y
        .command('check', 'check standby.yaml', {}, args =>
          handle({ name: 'config check', ...global(args) }),
        )
        .command(
          'show [domain]',
          'show effective values and where each comes from',
          z =>
            z.positional('domain', {
              type: 'string',
              description: 'one domain; all when none is named',
            }),
          args => handle({ name: 'config show', ...global(args), domain: args.domain }),
        )
        .command('schema', 'print the JSON Schema of standby.yaml, for editors', {}, args =>
          handle({ name: 'config schema', ...global(args) }),
        )
        .demandCommand(1, 'name one of: config check, config show, config schema')
        .strict(),
    )
    .completion('completion', 'print a completion script for bash or zsh')
    .option('config', {
      type: 'string',
      default: CONFIG_FILE,
      description: 'the configuration file',
    })
    .option('json', {
      type: 'boolean',
      default: false,
      description: 'print one JSON object on stdout',
    })
    .option('log-level', {
      choices: LOG_LEVELS,
      default: 'warn' as const,
      description: 'what to log on stderr',
    })
    .example('$0 pull mydomain', 'pull one domain now')
    .example('$0 pull --all --if-due', 'from cron: pull what is half an RPO old')
    .example('$0 status', 'how old is every clone?')
    .example('$0 verify mydomain', 're-read the newest generation')
    .example('$0 export mydomain --to /mnt/usb/mydomain', 'take the newest generation with you')
    .example('$0 config show mydomain', 'effective values, and where each comes from')
    .epilogue(`${exitStatusHelp()}\n  With several domains, the worst.`)
    .demandCommand(1, 'name a command, e.g.: clone status')
    .strict()
    .strictCommands()
    .version(VERSION)
    .help()
    .alias('h', 'help')
    .wrap(Math.min(100, process.stdout.columns || 100))
    .exitProcess(false)
    .fail(usageFailure('clone'))
}
