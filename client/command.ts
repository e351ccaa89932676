// A command of `clone` as its command line gives it, and the words that several commands share.

import type { Argv } from 'yargs'
import type { DiskFormat } from '../shared/gate.ts'
import type { LogLevel } from '../shared/log-level.ts'
import type { Timetable } from '../shared/timetable.ts'

export interface Global {
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
        readonly compare: boolean
        readonly trustTracking: boolean
        readonly dryRun: boolean
        readonly acceptNewHostKey: boolean
        readonly maxDurationMs: number | undefined
        readonly limitRate: Timetable | undefined
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
        readonly acceptNewHostKey: boolean
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

export type Handle = (command: Command) => Promise<void>

export const dryRun = {
  type: 'boolean',
  default: false,
  description: 'only say what would be done',
} as const

/** For each command that may connect to a source. */
export const acceptNewHostKey = {
  type: 'boolean',
  default: false,
  description: 'add the ssh host key of a source that nobody knows yet to known_hosts',
} as const

/** The one domain that a command is about. */
export const domain = (y: Argv) =>
  y.positional('domain', {
    type: 'string',
    demandOption: true,
    description: 'a domain of standby.yaml',
  })

export function global(
  args: { config: string; json: boolean; logLevel: LogLevel } | object,
): Global {
  const { config, json, logLevel } = args as Global
  return { config, json, logLevel }
}
