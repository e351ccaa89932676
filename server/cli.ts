#!/usr/bin/env node
// clone-server: the only file of the source that prints or exits.

import { checkName } from '../shared/names.ts'
import { describeFailure, toFailure } from '../shared/failures.ts'
import { asJson, failureJson } from '../shared/help.ts'
import { createLog } from '../shared/log.ts'
import { formatDuration, formatSize } from '../shared/quantities.ts'
import { classicFragment, showDomain, sourceJsonSchema } from './commands/config.ts'
import { statusTable } from './commands/status.ts'
import { isDuration, readSourceConfig, sourcePaths } from './config/schema.ts'
import { relayGate } from './gate/relay.ts'
import { program, type Actions, type Globals } from './program.ts'
import { askServe } from './serve/client.ts'
import { serve } from './serve/serve.ts'
import { createSource } from './source.ts'

const OPERATOR = { role: 'operator' } as const

function print(args: Globals, command: string, json: object, text: string): void {
  if (args.json) process.stdout.write(`${asJson(command, json)}\n`)
  else if (text !== '') process.stdout.write(`${text}\n`)
}

function serveSocket(args: Globals): string {
  return sourcePaths(readSourceConfig(args.config)).serveSocket
}

/** A value as people read it. */
function shown(key: string, value: unknown): string {
  return typeof value === 'number' && isDuration(key) ? formatDuration(value) : String(value)
}

/** Aborts on the first SIGINT or SIGTERM: serve then merges before it goes. */
function stopSignal(): AbortSignal {
  const controller = new AbortController()
  for (const name of ['SIGINT', 'SIGTERM'] as const) process.on(name, () => controller.abort())
  return controller.signal
}

const actions: Actions = {
  async serve(args) {
    const source = createSource(
      readSourceConfig(args.config),
      createLog('clone-server', args['log-level']),
    )
    await serve(source, stopSignal(), () => print(args, 'serve', { ready: true }, ''))
  },
  async gate(args) {
    await relayGate(
      serveSocket(args),
      checkName('client', args.client),
      process.stdin,
      process.stdout,
    )
  },
  async hook({ verb, socket, ...params }) {
    await askServe(socket, { role: 'hook' }, verb === 'begin' ? 'hook.begin' : 'hook.end', params)
  },
  async status(args) {
    const status = await askServe(serveSocket(args), OPERATOR, 'operator.status', {})
    print(args, 'status', status, statusTable(status.domains))
  },
  async recover(args) {
    const { domain } = args
    const { result } = await askServe(serveSocket(args), OPERATOR, 'operator.recover', { domain })
    print(args, 'recover', { domain, result }, `${domain}: ${result}`)
  },
  async sessionOpen(args) {
    const { domain } = args
    const held = await askServe(serveSocket(args), OPERATOR, 'operator.hold', { domain })
    const lines = held.disks.map(({ target, base }) => `  ${domain}/${target}  ${base}`)
    print(
      args,
      'session open',
      { domain, ...held },
      [`${domain} is frozen at ${held.recoveryPoint}`, ...lines].join('\n'),
    )
  },
  async sessionClose(args) {
    const { domain } = args
    const { state, disks } = await askServe(serveSocket(args), OPERATOR, 'operator.letGo', {
      domain,
    })
    const words = {
      'not held': 'was not held',
      kept: 'is still used by others, it is merged after them',
      merged: 'is merged',
    }
    const lines = disks.map(
      ({ target, mergeMs, overlayBytes }) =>
        `  ${target}  ${formatSize(overlayBytes)} in ${formatDuration(mergeMs)}`,
    )
    print(
      args,
      'session close',
      { domain, state, disks },
      [`${domain} ${words[state]}`, ...lines].join('\n'),
    )
  },
  configCheck(args) {
    const config = readSourceConfig(args.config)
    const domains = Object.keys(config.domains)
    for (const domain of domains) showDomain(config, domain)
    print(args, 'config check', { domains }, `${args.config}: ok, ${domains.length} domain(s)`)
    return Promise.resolve()
  },
  configShow(args) {
    const rows = showDomain(readSourceConfig(args.config), args.domain)
    const width = Math.max(...rows.map(row => row.key.length))
    const lines = rows.map(
      ({ key, value, origin }) => `${key.padEnd(width)}  ${shown(key, value)}  (${origin})`,
    )
    print(args, 'config show', { domain: args.domain, values: rows }, lines.join('\n'))
    return Promise.resolve()
  },
  async configNbdServer(args) {
    const source = createSource(
      readSourceConfig(args.config),
      createLog('clone-server', args['log-level']),
    )
    const fragment = await classicFragment(source)
    print(args, 'config nbd-server', { config: fragment }, fragment)
  },
  configSchema() {
    process.stdout.write(`${JSON.stringify(sourceJsonSchema(), null, 2)}\n`)
    return Promise.resolve()
  },
}

try {
  await program(process.argv.slice(2), actions).parseAsync()
} catch (error) {
  const failure = toFailure(error)
  if (process.argv.includes('--json'))
    process.stdout.write(`${asJson('error', { failure: failureJson(failure) })}\n`)
  process.stderr.write(`${describeFailure('clone-server', failure)}\n`)
  process.exitCode = failure.exit
}
