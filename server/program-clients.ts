// The part of the command line that is about who may come: authorize, revoke, clients.

import type { Argv } from 'yargs'
import type { AuthorizeOptions } from './commands/authorize.ts'
import type { Globals } from './program.ts'

export interface ClientActions {
  readonly authorize: (args: Globals & AuthorizeOptions) => Promise<void>
  readonly revoke: (args: Globals & { client: string; file: string | undefined }) => Promise<void>
  readonly clients: (args: Globals) => Promise<void>
}

const FILE = {
  type: 'string',
  requiresArg: true,
  describe: 'authorized_keys file; default: that of the user who runs this',
} as const

/** Adds the commands. */
export function clientCommands(base: Argv<Globals>, actions: ClientActions): Argv<Globals> {
  return base
    .command(
      'authorize <key>',
      'let a standby pull: its rights, and its line for authorized_keys',
      (one: Argv<Globals>) =>
        one
          .positional('key', {
            type: 'string',
            demandOption: true,
            describe: 'public key: a file, its text, or - for standard input',
          })
          // Without a count yargs takes a - for nothing.
          .nargs('key', 1)
          .option('client', {
            type: 'string',
            demandOption: true,
            requiresArg: true,
            describe: 'name of the client',
          })
          .option('domains', {
            type: 'string',
            demandOption: true,
            requiresArg: true,
            describe: 'domains that it may have: a,b or all',
          })
          .option('verbs', {
            type: 'string',
            requiresArg: true,
            describe: 'what it may do: describe,pull,digests; all without it',
          })
          .option('bandwidth', {
            type: 'string',
            requiresArg: true,
            describe: 'for all of its streams together, e.g. 20MiB/s',
          })
          .option('from', {
            type: 'string',
            requiresArg: true,
            describe: 'addresses that it may come from, e.g. 192.0.2.7,198.51.100.0/24',
          })
          .option('install', {
            type: 'boolean',
            default: false,
            describe: 'put the line into the file, in place of an older one of this client',
          })
          .option('file', FILE)
          .option('dry-run', {
            type: 'boolean',
            default: false,
            describe: 'check and print, change nothing',
          }),
      ({ verbs, bandwidth, from, file, ...args }) =>
        actions.authorize({ ...args, verbs, bandwidth, from, file, dryRun: args['dry-run'] }),
    )
    .command(
      'revoke <client>',
      'take rights, keys and certificates of a client away, and end what it has open',
      (one: Argv<Globals>) =>
        one
          .positional('client', { type: 'string', demandOption: true, describe: 'the client' })
          .option('file', FILE),
      args => actions.revoke({ ...args, file: args.file }),
    )
    .command('clients', 'who is authorized, and for what', one => one, actions.clients)
}
