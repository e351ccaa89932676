// The command line of `clone` as yargs knows it: commands, options, examples, exit status. Runs and prints nothing.

import yargs, { type Argv } from 'yargs'
import { Failure } from '../shared/failures.ts'
import type { DiskFormat } from '../shared/gate.ts'
import { exitStatusHelp } from '../shared/help.ts'
import { LOG_LEVELS, type LogLevel } from '../shared/log-level.ts'
import { parseDuration } from '../shared/quantities.ts'
import { VERSION } from '../shared/version.ts'
import { CONFIG_FILE } from './config/effective.ts'

interface Global {
  readonly config: string
  readonly json: boolean
  readonly logLevel: LogLevel
}
/** What the user asked for, checked as far as the command line alone can tell. */
export type Command = Global &
  (
    | {
        readonly name: 'pull'
        readonly domains: readonly string[]
        readonly all: boolean
        readonly ifDue: boolean
        readonly adopt: boolean
        readonly full: boolean
        readonly dryRun: boolean
        readonly maxDurationMs: number | undefined
      }
    | { readonly name: 'status'; readonly domains: readonly string[] }
    | { readonly name: 'list'; readonly domain: string }
    | {
        readonly name: 'verify manifests'
        readonly domain: string
        readonly generation: string | undefined
      }
    | { readonly name: 'verify history'; readonly domain: string }
    | {
        readonly name: 'verify'
        readonly domain: string
        readonly generation: string | undefined
        readonly all: boolean
        readonly ifDue: boolean
        readonly repair: boolean
      }
    | {
        readonly name: 'export'
        readonly domain: string
        readonly generation: string | undefined
        readonly to: string
        readonly format: DiskFormat | undefined
      }
    | {
        readonly name: 'import'
        readonly domain: string
        readonly folder: string
        readonly adopt: boolean
      }
    | { readonly name: 'prune'; readonly domain: string; readonly dryRun: boolean }
    | {
        readonly name: 'claim' | 'release'
        readonly domain: string
        readonly generation: string
        readonly purpose: string
      }
    | {
        readonly name: 'rollback'
        readonly domain: string
        readonly generation: string
        readonly dryRun: boolean
      }
    | { readonly name: 'config check' }
    | { readonly name: 'config show'; readonly domain: string | undefined }
    | { readonly name: 'config schema' }
  )

/**
 * The parser. `parseAsync()` calls `handle` with the command; `getHelp()` and the like work without one.
 * @throws (from parseAsync) Failure USAGE
 */
export function program(
  argv: readonly string[] = [],
  handle: (command: Command) => Promise<void> = () => Promise.resolve(),
): Argv {
  const domains = (y: Argv, description: string) =>
    y.positional('domains', { type: 'string', array: true, default: [] as string[], description })
  const domain = (y: Argv) =>
    y.positional('domain', {
      type: 'string',
      demandOption: true,
      description: 'a domain of standby.yaml',
    })
  const claim = (y: Argv) =>
    domain(y)
      .positional('generation', {
        type: 'string',
        demandOption: true,
        description: 'a recovery point or a sequence number',
      })
      .positional('purpose', {
        type: 'string',
        demandOption: true,
        description: 'what it is held for: a name',
      })
  const dryRun = {
    type: 'boolean',
    default: false,
    description: 'only say what would be done',
  } as const

  return yargs([...argv])
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
          .option('max-duration', {
            type: 'string',
            description: 'stop each pull that has not read everything after so long, e.g. 4h',
          })
          .option('dry-run', dryRun),
      async args => {
        const { ifDue, all, adopt, full, dryRun, domains, maxDuration } = args
        const maxDurationMs =
          maxDuration === undefined ? undefined : parseDuration('--max-duration', maxDuration)
        await handle({
          ...{ name: 'pull', ...global(args), domains, all, ifDue, adopt, full, dryRun },
          maxDurationMs,
        })
      },
    )
    .command(
      'status [domains..]',
      'show how old each clone is against its RPO',
      y => domains(y, 'which domains to show; all when none is named'),
      args => handle({ name: 'status', ...global(args), domains: args.domains }),
    )
    .command('list <domain>', 'list the generations of a clone', domain, args =>
      handle({ name: 'list', ...global(args), domain: args.domain }),
    )
    .command(
      'verify <domain> [generation]',
      're-read a generation and name the chunks that differ',
      y =>
        domain(y)
          .positional('generation', {
            type: 'string',
            description: 'a recovery point or a sequence number; the newest when none is named',
          })
          .option('all', {
            type: 'boolean',
            default: false,
            description: 'every generation of the clone',
          })
          .option('if-due', {
            type: 'boolean',
            default: false,
            description: 'do nothing while the last full read-back is younger than reverify',
          })
          .option('manifests-only', {
            type: 'boolean',
            default: false,
            description: 'only the manifests, of all generations when none is named; read no image',
          })
          .option('history', {
            type: 'boolean',
            default: false,
            description: 'only whether history.jsonl is whole',
          })
          .option('repair', {
            type: 'boolean',
            default: false,
            description: 'get bad chunks from other generations or the source',
          })
          .check(({ generation, all, ifDue, repair, manifestsOnly, history }) => {
            if (all && generation !== undefined)
              throw new Failure('USAGE', 'name a generation, or --all, not both')
            if (history && (manifestsOnly || generation !== undefined))
              throw new Failure(
                'USAGE',
                '--history is of the whole clone and goes with nothing else',
              )
            if ((history || manifestsOnly) && (all || repair || ifDue))
              throw new Failure(
                'USAGE',
                '--manifests-only and --history read no image, so --all, --repair and --if-due do not go with them',
              )
            return true
          }),
      args => {
        const { domain, generation, all, ifDue, repair, manifestsOnly, history } = args
        if (history) return handle({ name: 'verify history', ...global(args), domain })
        if (manifestsOnly)
          return handle({ name: 'verify manifests', ...global(args), domain, generation })
        return handle({
          ...{ name: 'verify', ...global(args), domain, generation },
          ...{ all, ifDue, repair },
        })
      },
    )
    .command(
      'prune <domain>',
      'remove the generations that keep does not want',
      y => domain(y).option('dry-run', dryRun),
      args => handle({ name: 'prune', ...global(args), domain: args.domain, dryRun: args.dryRun }),
    )
    .command(
      'claim <domain> <generation> <purpose>',
      'hold a generation: neither prune nor rollback touches it',
      claim,
      ({ domain, generation, purpose, ...args }) =>
        handle({ name: 'claim', ...global(args), domain, generation, purpose }),
    )
    .command(
      'release <domain> <generation> <purpose>',
      'end a claim',
      claim,
      ({ domain, generation, purpose, ...args }) =>
        handle({ name: 'release', ...global(args), domain, generation, purpose }),
    )
    .command(
      'rollback <domain> <generation>',
      'make an older generation current, or the newest again',
      y =>
        domain(y)
          .positional('generation', {
            type: 'string',
            demandOption: true,
            description: 'a recovery point, a sequence number, or: newest',
          })
          .option('dry-run', dryRun),
      ({ domain, generation, dryRun, ...args }) =>
        handle({ name: 'rollback', ...global(args), domain, generation, dryRun }),
    )
    .command(
      'export <domain> [generation]',
      'copy a generation into a folder that needs nothing of this program',
      y =>
        domain(y)
          .positional('generation', {
            type: 'string',
            description: 'a recovery point or a sequence number; the newest when none is named',
          })
          .option('to', {
            type: 'string',
            demandOption: true,
            description: 'the folder to make; it must not exist or be empty',
          })
          .option('format', {
            choices: ['raw', 'qcow2'] as const,
            description: 'convert images to this format; as they are when not given',
          }),
      args => {
        const { domain, generation, to, format } = args
        return handle({ name: 'export', ...global(args), domain, generation, to, format })
      },
    )
    .command(
      'import <domain> <folder>',
      'seed a clone that has no generation yet from an exported folder',
      y =>
        domain(y)
          .positional('folder', {
            type: 'string',
            demandOption: true,
            description: 'what clone export made',
          })
          .option('adopt', {
            type: 'boolean',
            default: false,
            description: 'bind the clone to the domain of the folder, although it is another one',
          }),
      args => {
        const { domain, folder, adopt } = args
        return handle({ name: 'import', ...global(args), domain, folder, adopt })
      },
    )
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
    .version(VERSION)
    .help()
    .wrap(Math.min(100, process.stdout.columns || 100))
    .exitProcess(false)
    .fail((message: string | undefined, error: Error | undefined) => {
      if (error) throw error
      throw new Failure('USAGE', message ?? 'wrong usage', { remedy: 'see: clone --help' })
    })
}

function global(args: { config: string; json: boolean; logLevel: LogLevel } | object): Global {
  const { config, json, logLevel } = args as Global
  return { config, json, logLevel }
}
