// The commands about the generations of one clone, as yargs knows them.

import type { Argv } from 'yargs'
import { Failure } from '../shared/failures.ts'
import { acceptNewHostKey, domain, dryRun, global, type Handle } from './command.ts'

const which = {
  type: 'string',
  description: 'a recovery point or a sequence number; the newest when none is named',
} as const

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

/** Adds list, verify, prune, claim, release, rollback, export and import. */
export function generationCommands(parser: Argv, handle: Handle): Argv {
  return parser
    .command('list <domain>', 'list the generations of a clone', domain, args =>
      handle({ name: 'list', ...global(args), domain: args.domain }),
    )
    .command(
      'verify <domain> [generation]',
      're-read a generation and name the chunks that differ',
      y =>
        domain(y)
          .positional('generation', which)
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
          .option('accept-new-host-key', acceptNewHostKey)
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
        const { acceptNewHostKey } = args
        if (history) return handle({ name: 'verify history', ...global(args), domain })
        if (manifestsOnly)
          return handle({ name: 'verify manifests', ...global(args), domain, generation })
        return handle({
          ...{ name: 'verify', ...global(args), domain, generation },
          ...{ all, ifDue, repair, acceptNewHostKey },
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
          .positional('generation', which)
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
}
