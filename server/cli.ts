#!/usr/bin/env node
// clone-server: the only file of the source that prints or exits.

import path from 'node:path'
import { text } from 'node:stream/consumers'
import { describeFailure, toFailure } from '../shared/failures.ts'
import { asJson, failureJson, wantsJson } from '../shared/help.ts'
import { formatDuration, formatSize } from '../shared/quantities.ts'
import type { Paths } from './config/paths.ts'
import { DEFAULT_CONFIG, program, type Actions, type Globals } from './program.ts'
import { askServe } from './serve/client.ts'
import type { Source } from './source.ts'

// A client waits for two hooks of each connection, so only what those need is loaded here; the rest by who needs it.

const OPERATOR = { role: 'operator' } as const

function print(args: Globals, command: string, json: object, plain: string): void {
  if (args.json) process.stdout.write(`${asJson(command, json)}\n`)
  else if (plain !== '') process.stdout.write(`${plain}\n`)
}

async function paths(args: Globals): Promise<Paths> {
  const { sourcePaths } = await import('./config/paths.ts')
  const { readSourceConfig } = await import('./config/schema.ts')
  return sourcePaths(readSourceConfig(args.config), args.config)
}

async function serveSocket(args: Globals): Promise<string> {
  return (await paths(args)).serveSocket
}

async function openSource(args: Globals): Promise<Source> {
  const [{ readSourceConfig }, { createSource }, { createLog }] = await Promise.all([
    import('./config/schema.ts'),
    import('./source.ts'),
    import('../shared/log.ts'),
  ])
  return createSource(
    readSourceConfig(args.config),
    args.config,
    createLog('clone-server', args['log-level']),
  )
}

const tls = (): Promise<typeof import('./commands/tls.ts')> => import('./commands/tls.ts')

/** Aborts on the first SIGINT or SIGTERM: serve then merges before it goes. */
function stopSignal(): AbortSignal {
  const controller = new AbortController()
  for (const name of ['SIGINT', 'SIGTERM'] as const) process.on(name, () => controller.abort())
  return controller.signal
}

async function recoverEvery(args: Globals): Promise<void> {
  const [{ sourcePaths }, { readSourceConfig }, commands] = await Promise.all([
    import('./config/paths.ts'),
    import('./config/schema.ts'),
    import('./commands/recover.ts'),
  ])
  const recovered = await commands.recoverAll(
    sourcePaths(readSourceConfig(args.config), args.config),
  )
  print(args, 'recover', commands.recoveredJson(recovered), commands.renderRecovered(recovered))
  for (const { result } of recovered)
    if (typeof result !== 'string')
      process.stderr.write(`${describeFailure('clone-server', result)}\n`)
  process.exitCode = commands.recoveredExit(recovered)
}

const actions: Actions = {
  async serve(args) {
    const { serve } = await import('./serve/serve.ts')
    await serve(await openSource(args), stopSignal(), () =>
      print(args, 'serve', { ready: true }, ''),
    )
  },
  async gate(args) {
    const { runGate } = await import('./gate/gate.ts')
    const { serveSocket, gateSocket } = await paths(args)
    const socket = process.getuid?.() === 0 ? serveSocket : gateSocket
    await runGate(socket, args.client, process.env, process.stdin, process.stdout)
  },
  async authorize(args) {
    const [{ sourcePaths }, { readSourceConfig }, { authorize, authorizeNotes }] =
      await Promise.all([
        import('./config/paths.ts'),
        import('./config/schema.ts'),
        import('./commands/authorize.ts'),
      ])
    const config = readSourceConfig(args.config)
    const { clients, serveSocket } = sourcePaths(config, args.config)
    // A forced command runs somewhere else, so it gets the path that was meant here.
    const configFile = args.config === DEFAULT_CONFIG ? undefined : path.resolve(args.config)
    const readInput = (): Promise<string> => text(process.stdin)
    const done = await authorize({ config, configFile, clients, serveSocket }, args, readInput)
    print(args, 'authorize', done, done.line)
    if (!args.json) process.stderr.write(`${authorizeNotes(done).join('\n')}\n`)
  },
  async revoke(args) {
    const [{ revoke, renderRevoked }, { ownKeyFile }, { tlsFolder }] = await Promise.all([
      import('./commands/revoke.ts'),
      import('./commands/authorize.ts'),
      import('./tls/paths.ts'),
    ])
    const file = args.file ?? (await ownKeyFile())
    const done = await revoke(await paths(args), tlsFolder(args.config), args.client, file)
    print(args, 'revoke', done, renderRevoked(done))
  },
  async clients(args) {
    const [{ listClients }, { clientsTable }] = await Promise.all([
      import('./clients/registry.ts'),
      import('./commands/clients.ts'),
    ])
    const clients = await listClients((await paths(args)).clients)
    print(args, 'clients', { clients }, clientsTable(clients))
  },
  async hook({ verb, socket, ...params }) {
    await askServe(socket, { role: 'hook' }, verb === 'begin' ? 'hook.begin' : 'hook.end', params)
  },
  async hookStart({ socket, domain }) {
    const { announceStart } = await import('./commands/hook-start.ts')
    await announceStart(socket, domain, process.stdin)
    // The socket of a serve that hangs would keep this program, and with it the start.
    process.exit()
  },
  async status(args) {
    const [status, { statusTable }] = await Promise.all([
      askServe(await serveSocket(args), OPERATOR, 'operator.status', {}),
      import('./commands/status.ts'),
    ])
    print(args, 'status', status, statusTable(status.domains))
  },
  async doctor(args) {
    const [{ examine }, { renderDiagnosis }] = await Promise.all([
      import('./doctor/doctor.ts'),
      import('./commands/doctor.ts'),
    ])
    const diagnosis = await examine(args.config, args.domains)
    print(args, 'doctor', diagnosis, renderDiagnosis(diagnosis))
    process.exitCode = diagnosis.exit
  },
  async recover(args) {
    const { domain, mergeOverlays } = args
    if (domain === undefined) {
      await recoverEvery(args)
      return
    }
    const { result } = await askServe(await serveSocket(args), OPERATOR, 'operator.recover', {
      domain,
      ...(mergeOverlays === undefined ? {} : { mergeOverlays: mergeOverlays.split(',') }),
    })
    print(args, 'recover', { domain, result }, `${domain}: ${result}`)
  },
  async sessionOpen(args) {
    const { domain } = args
    const held = await askServe(await serveSocket(args), OPERATOR, 'operator.hold', { domain })
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
    const { state, disks } = await askServe(await serveSocket(args), OPERATOR, 'operator.letGo', {
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
  async configCheck(args) {
    const { readSourceConfig } = await import('./config/schema.ts')
    const { showDomain } = await import('./commands/config.ts')
    const config = readSourceConfig(args.config)
    const domains = Object.keys(config.domains)
    for (const domain of domains) showDomain(config, domain)
    print(args, 'config check', { domains }, `${args.config}: ok, ${domains.length} domain(s)`)
  },
  async configShow(args) {
    const { formatSetting, readSourceConfig } = await import('./config/schema.ts')
    const { showDomain } = await import('./commands/config.ts')
    const rows = showDomain(readSourceConfig(args.config), args.domain)
    const width = Math.max(...rows.map(row => row.key.length))
    const lines = rows.map(
      ({ key, value, origin }) => `${key.padEnd(width)}  ${formatSetting(key, value)}  (${origin})`,
    )
    print(args, 'config show', { domain: args.domain, values: rows }, lines.join('\n'))
  },
  async configNbdServer(args) {
    const { classicFragment } = await import('./commands/config.ts')
    const fragment = await classicFragment(await openSource(args))
    print(args, 'config nbd-server', { config: fragment }, fragment)
  },
  async configLibvirtHook(args) {
    const [{ sourcePaths }, { readSourceConfig }, { START_HOOK, startHookScript }] =
      await Promise.all([
        import('./config/paths.ts'),
        import('./config/schema.ts'),
        import('./libvirt/start-hook.ts'),
      ])
    const { serveSocket } = sourcePaths(readSourceConfig(args.config), args.config)
    const script = startHookScript(serveSocket)
    print(args, 'config libvirt-hook', { file: START_HOOK, script }, script.trimEnd())
  },
  async tlsInit(args) {
    const { json, text } = await (await tls()).tlsInit(args)
    print(args, 'tls init', json, text)
  },
  async tlsRenew(args) {
    const { json, text } = await (await tls()).tlsRenew(args)
    print(args, 'tls renew', json, text)
  },
  async tlsIssue(args) {
    const { json, text } = await (await tls()).tlsIssue(args)
    print(args, 'tls issue', json, text)
  },
  async tlsRevoke(args) {
    const { json, text } = await (await tls()).tlsRevoke(args)
    print(args, 'tls revoke', json, text)
  },
  async tlsList(args) {
    const { json, text } = await (await tls()).tlsList(args)
    print(args, 'tls list', json, text)
  },
  async configSchema() {
    const { sourceJsonSchema } = await import('./commands/config.ts')
    process.stdout.write(`${JSON.stringify(sourceJsonSchema(), null, 2)}\n`)
  },
}

try {
  await program(process.argv.slice(2), actions).parseAsync()
} catch (error) {
  const failure = toFailure(error)
  if (wantsJson(process.argv.slice(2)))
    process.stdout.write(`${asJson('error', { failure: failureJson(failure) })}\n`)
  process.stderr.write(`${describeFailure('clone-server', failure)}\n`)
  process.exitCode = failure.exit
}
