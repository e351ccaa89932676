// The commands about certificates, as yargs knows them.

import type { Argv } from 'yargs'
import type { IssueArguments, ServerArguments } from './commands/tls.ts'
import type { Globals } from './program.ts'

/** What each command does; cli.ts supplies it. */
export interface TlsActions {
  readonly tlsInit: (args: Globals & ServerArguments) => Promise<void>
  readonly tlsRenew: (args: Globals & ServerArguments) => Promise<void>
  readonly tlsIssue: (args: Globals & IssueArguments) => Promise<void>
  readonly tlsRevoke: (args: Globals & { name: string; 'dry-run': boolean }) => Promise<void>
  readonly tlsList: (args: Globals) => Promise<void>
}

/** The authority and the server: ten years, because nothing is pulled any more once they are over. */
const SERVER_DAYS = 3650
const CLIENT_DAYS = 1095

const dryRun = {
  type: 'boolean',
  default: false,
  describe: 'say what would be done, and do nothing',
} as const
const days = (value: number) =>
  ({ type: 'number', default: value, describe: 'how long it is valid' }) as const

const server = (one: Argv<Globals>) =>
  one
    .option('host', {
      type: 'string',
      describe: "names and addresses of this source: a,b,c; this host's name without it",
    })
    .option('days', days(SERVER_DAYS))
    .option('dry-run', dryRun)
const client = (one: Argv<Globals>) =>
  one.positional('name', { type: 'string', demandOption: true, describe: 'name of the client' })

/** Adds tls init, issue, renew, revoke and list. */
export function tlsCommands(one: Argv<Globals>, actions: TlsActions): Argv<Globals> {
  return one
    .command('init', 'make an authority, and a certificate for this source', server, args =>
      actions.tlsInit({ ...args, host: args.host }),
    )
    .command(
      'issue <name>',
      'make key and certificate of a client',
      two =>
        client(two)
          .option('out', { type: 'string', describe: 'folder to make; NAME-tls without it' })
          .option('days', days(CLIENT_DAYS))
          .option('dry-run', dryRun),
      args => actions.tlsIssue({ ...args, out: args.out }),
    )
    .command('renew', 'make a new certificate for this source', server, args =>
      actions.tlsRenew({ ...args, host: args.host }),
    )
    .command(
      'revoke <name>',
      'refuse all certificates of a client, and end what it has open',
      two => client(two).option('dry-run', dryRun),
      args => actions.tlsRevoke(args),
    )
    .command(
      'list',
      'certificates that were issued',
      two => two,
      args => actions.tlsList(args),
    )
    .demandCommand(1, 'tls needs init, issue, renew, revoke or list')
    .strict()
}
