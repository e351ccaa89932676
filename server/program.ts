// The command line of clone-server: what can be typed, with help that comes from the failure table.

import yargs, { type Argv } from 'yargs'
import { exitStatusHelp, usageFailure } from '../shared/help.ts'
import { LOG_LEVELS, type LogLevel } from '../shared/log-level.ts'
import { VERSION } from '../shared/version.ts'
import { clientCommands, type ClientActions } from './program-clients.ts'
import { tlsCommands, type TlsActions } from './program-tls.ts'

export const DEFAULT_CONFIG = '/etc/nbd-clone/source.yaml'
const DEFAULT_LEVEL: LogLevel = 'info'

/** What each command does; cli.ts supplies it, tests of the help need none. */
export interface Actions extends ClientActions, TlsActions {
  readonly serve: (args: Globals) => Promise<void>
  readonly gate: (args: Globals & { client: string | undefined }) => Promise<void>
  readonly hook: (args: HookArguments) => Promise<void>
  readonly hookStart: (args: { socket: string; domain: string }) => Promise<void>
  readonly status: (args: Globals) => Promise<void>
  readonly doctor: (args: Globals & { domains: readonly string[] }) => Promise<void>
  readonly recover: (
    args: Globals & { domain: string | undefined; mergeOverlays: string | undefined },
  ) => Promise<void>
  readonly sessionOpen: (args: Globals & { domain: string }) => Promise<void>
  readonly sessionClose: (args: Globals & { domain: string }) => Promise<void>
  readonly configCheck: (args: Globals) => Promise<void>
  readonly configShow: (args: Globals & { domain: string }) => Promise<void>
  readonly configNbdServer: (args: Globals) => Promise<void>
  readonly configLibvirtHook: (args: Globals) => Promise<void>
  readonly configSchema: (args: Globals) => Promise<void>
}

export interface Globals {
  readonly config: string
  readonly json: boolean
  readonly 'log-level': LogLevel
}

export interface HookArguments {
  readonly verb: 'begin' | 'end'
  readonly socket: string
  readonly connection: string
  readonly domain: string
  readonly target: string
  readonly token: string | undefined
  readonly pid: number
}

const SOCKET = { type: 'string', demandOption: true, describe: "serve's socket" } as const
const DOMAIN = { type: 'string', demandOption: true, describe: 'libvirt domain' } as const

/** What nbd-server's hooks say of a connection. */
function connection(one: Argv<Globals>) {
  return one
    .option('socket', SOCKET)
    .option('connection', { type: 'string', demandOption: true, describe: 'connection id' })
    .option('domain', DOMAIN)
    .option('target', { type: 'string', demandOption: true, describe: "disk's target" })
    .option('token', { type: 'string', describe: 'token of the session' })
    .option('pid', {
      type: 'number',
      demandOption: true,
      describe: 'nbd-server process that runs the hook',
    })
}

/** Builds the parser. Nothing runs before `.parseAsync()`. */
export function program(argv: readonly string[], actions: Actions): Argv {
  const domain = (one: Argv<Globals>): Argv<Globals & { domain: string }> =>
    one.positional('domain', DOMAIN)
  const base: Argv<Globals> = yargs([...argv])
    .scriptName('clone-server')
    .usage(
      '$0 COMMAND\n\nThe source side of nbd-clone: exports the disks of libvirt domains, frozen at one instant.',
    )
    .option('config', { type: 'string', default: DEFAULT_CONFIG, describe: 'configuration file' })
    .option('json', { type: 'boolean', default: false, describe: 'one JSON object on stdout' })
    .option('log-level', {
      choices: LOG_LEVELS,
      default: DEFAULT_LEVEL,
      describe: 'what to log on stderr',
    })
  const first = base
    .command('serve', 'run the source: sessions, hooks, nbd-server', one => one, actions.serve)
    .command('status', 'domains, sessions, overlays, last outcome', one => one, actions.status)
  return clientCommands(first, actions)
    .command(
      'session',
      'hold one recovery point for stock NBD clients',
      one =>
        one
          .command('open <domain>', 'freeze the domain and hold it', domain, actions.sessionOpen)
          .command('close <domain>', 'let it go and merge', domain, actions.sessionClose)
          .demandCommand(1, 'session needs open or close')
          .strict(),
      () => undefined,
    )
    .command(
      'recover [domain]',
      'settle what an earlier run left, of one domain or of all',
      (one: Argv<Globals>) =>
        one
          .positional('domain', { type: 'string', describe: 'libvirt domain; all without it' })
          .option('merge-overlays', {
            type: 'string',
            describe: 'disks whose overlays are not ours, and left-overs on your word: vda,vdb',
          })
          .check(({ domain, mergeOverlays }) => {
            if (mergeOverlays !== undefined && domain === undefined)
              throw new Error('--merge-overlays needs the domain that it is for')
            return true
          }),
      args => actions.recover({ ...args, domain: args.domain, mergeOverlays: args.mergeOverlays }),
    )
    .command(
      'doctor [domains..]',
      'check everything a source needs',
      (one: Argv<Globals>) =>
        one.positional('domains', {
          type: 'string',
          array: true,
          default: [] as string[],
          describe: 'libvirt domains; all that are listed without one',
        }),
      args => actions.doctor(args),
    )
    .command(
      'config',
      'check and show the configuration',
      one =>
        one
          .command(
            'check',
            'read the file and say whether it is right',
            two => two,
            actions.configCheck,
          )
          .command(
            'show <domain>',
            'effective values and where each comes from',
            domain,
            actions.configShow,
          )
          .command(
            'nbd-server',
            'configuration for the classic nbd-server daemon',
            two => two,
            actions.configNbdServer,
          )
          .command(
            'libvirt-hook',
            'hook for libvirt: with it, domains that are off can be pulled',
            two => two,
            actions.configLibvirtHook,
          )
          .command(
            'schema',
            'JSON Schema of the file, for editors',
            two => two,
            actions.configSchema,
          )
          .demandCommand(1, 'config needs check, show, nbd-server, libvirt-hook or schema')
          .strict(),
      () => undefined,
    )
    .command(
      'gate',
      'control endpoint of a standby, on stdin and stdout (run over ssh)',
      (one: Argv<Globals>) =>
        one.option('client', {
          type: 'string',
          describe: 'client whose rights are asked for; without it, root on this host',
        }),
      args => actions.gate({ ...args, client: args.client }),
    )
    .command(
      'hook',
      'run by nbd-server and by libvirt',
      one =>
        one
          .command('begin', 'before a connection', connection, args =>
            actions.hook({ ...args, verb: 'begin', token: args.token }),
          )
          .command('end', 'after a connection', connection, args =>
            actions.hook({ ...args, verb: 'end', token: args.token }),
          )
          .command(
            'start',
            'before a domain starts; its XML on stdin',
            two => two.option('socket', SOCKET).option('domain', DOMAIN),
            args => actions.hookStart(args),
          )
          .demandCommand(1, 'hook needs begin, end or start')
          .strict(),
      () => undefined,
    )
    .command(
      'tls',
      'certificates for listen.tls',
      one => tlsCommands(one, actions),
      () => undefined,
    )
    .completion('completion', 'print a completion script for the shell')
    .example('clone-server doctor', 'what is missing on this host, and what to do about it')
    .example('clone-server serve', 'run the source')
    .example(
      'clone-server authorize standby1.pub --client standby1 --domains mydomain --install',
      'let a standby pull this domain over ssh, and nothing else',
    )
    .example(
      'clone-server session open mydomain',
      'freeze it, copy with any NBD client, then close',
    )
    .example(
      'clone-server recover',
      'after a crash, with serve running: bring all domains back onto their bases',
    )
    .epilogue(exitStatusHelp())
    .demandCommand(1, 'a command is needed')
    .strict()
    .strictCommands()
    .version(VERSION)
    .help()
    .alias('h', 'help')
    .fail(usageFailure('clone-server'))
}
