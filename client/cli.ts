#!/usr/bin/env node
// The `clone` program: the only file of the standby side that prints or exits. What only some commands need is loaded by
// them, so that `status` answers at once.

import { hideBin } from 'yargs/helpers'
import { describeFailure, Failure, toFailure } from '../shared/failures.ts'
import { asJson, failureJson, wantsJson } from '../shared/help.ts'
import { configCheck, configShow } from './commands/config.ts'
import { listCommand } from './commands/list.ts'
import { namedClones } from './commands/named.ts'
import { statusCommand } from './commands/status.ts'
import { verifyHistoryCommand } from './commands/verify-history.ts'
import { verifyManifestsCommand } from './commands/verify-manifests.ts'
import { cloneConfig, loadConfig, type CloneConfig } from './config/effective.ts'
import { layoutOf } from './store/layout.ts'
import { standbyJsonSchema } from './config/schema.ts'
import { program, type Command } from './program.ts'
import { userAt } from './terminal.ts'
import {
  claimText,
  listText,
  pruneText,
  statusText,
  verifyHistoryText,
  verifyManifestsText,
} from './render-generations.ts'

const print = (text: string): boolean => process.stdout.write(`${text}\n`)
const complain = (text: string): boolean => process.stderr.write(`${text}\n`)

/** Aborted by the first Ctrl-C or SIGTERM; everything then undoes itself. Short commands just end. */
function interruptible(): AbortSignal {
  const controller = new AbortController()
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const)
    process.on(name, () => controller.abort(new Failure('INTERRUPTED', `interrupted by ${name}`)))
  return controller.signal
}

/** @returns the exit status */
function complainOf(clone: string, message: string, { remedy }: { remedy: string }): number {
  const failure = new Failure('INTEGRITY', message, { remedy })
  complain(describeFailure(`clone: ${clone}`, failure))
  return failure.exit
}

async function verifyAndSay(
  { generation, all, ifDue, repair }: Extract<Command, { name: 'verify' }>,
  clone: CloneConfig,
  say: (data: object, text: () => string) => void,
): Promise<number> {
  const { exitOf, failuresOf, verifyAll, verifyCommand } = await import('./commands/verify.ts')
  const { progressBar } = await import('./progress.ts')
  const { verifyJson, verifyText } = await import('./render-verify.ts')
  if (ifDue) {
    const { reverifyDue } = await import('./reverify.ts')
    const { due, reason } = await reverifyDue(clone, layoutOf(clone.dir))
    if (!due) {
      say({ clone: clone.name, due, reason }, () => `${clone.name}: not due, ${reason}`)
      return 0
    }
  }
  const manner = repair ? 'repair' : 'bytes'
  const [signal, watcher] = [interruptible(), progressBar(process.stderr, clone.name)]
  const results = all
    ? await verifyAll(clone, signal, watcher, manner)
    : [await verifyCommand(clone, generation, signal, watcher, manner)]
  const data = results.map(verifyJson)
  say(all ? { clone: clone.name, generations: data } : { ...data[0] }, () =>
    results.map(one => verifyText(one)).join('\n'),
  )
  for (const failure of results.flatMap(failuresOf))
    complain(describeFailure(`clone: ${clone.name}`, failure))
  return exitOf(results)
}

/** Does one command and prints its data. @returns the exit status */
async function perform(command: Command): Promise<number> {
  const say = (data: object, text: () => string): boolean =>
    print(command.json ? asJson(command.name, data) : text())
  if (command.name === 'config schema') {
    print(JSON.stringify(standbyJsonSchema(), undefined, 2))
    return 0
  }
  const config = loadConfig(command.config)
  switch (command.name) {
    case 'pull': {
      const { createLog } = await import('../shared/log.ts')
      const { pullCommand } = await import('./commands/pull.ts')
      const { progressBar } = await import('./progress.ts')
      const { pullJson, pullText } = await import('./render.ts')
      const watch = (clone: string) => progressBar(process.stderr, clone)
      const log = createLog('clone', command.logLevel)
      const signal = interruptible()
      const user = userAt(process.stdin, process.stderr, command.acceptNewHostKey)
      const { results, exit } = await pullCommand(config, command, log, signal, watch, user)
      if (command.json) print(asJson('pull', pullJson(results, exit)))
      for (const result of results)
        if (result.outcome === 'failed') complain(pullText(result))
        // Success is told to people, not to cron.
        else if (!command.json && (process.stdout.isTTY || result.outcome === 'planned'))
          print(pullText(result))
      return exit
    }
    case 'status': {
      const all = command.domains.length === 0
      const noneYet = all && Object.keys(config.domains).length === 0
      const clones = await statusCommand(noneYet ? [] : namedClones(config, command.domains, all))
      say({ clones }, () => statusText(clones))
      return 0
    }
    case 'list': {
      const listed = await listCommand(cloneConfig(config, command.domain))
      say({ clone: command.domain, ...listed }, () =>
        listText(listed.generations, listed.historyProblems),
      )
      return 0
    }
    case 'verify manifests': {
      const clone = cloneConfig(config, command.domain)
      const verified = await verifyManifestsCommand(clone, command.generation)
      say(verified, () => verifyManifestsText(verified))
      const bad = verified.generations.filter(one => one.bad.length > 0)
      if (bad.length === 0) return 0
      const text = `bad files in ${bad.length} of ${verified.generations.length} generations`
      return complainOf(clone.name, text, {
        remedy: `to see what of the images is good, and record what is not: clone verify ${clone.name} GENERATION`,
      })
    }
    case 'verify history': {
      const clone = cloneConfig(config, command.domain)
      const verified = await verifyHistoryCommand(clone)
      say(verified, () => verifyHistoryText(verified))
      if (verified.problems.length === 0) return 0
      return complainOf(clone.name, 'lines of history.jsonl were edited or removed', {
        remedy: 'the images do not depend on it: keep a copy of it, and find out who changed it',
      })
    }
    case 'verify': {
      const user = userAt(process.stdin, process.stderr, command.acceptNewHostKey)
      return verifyAndSay(command, cloneConfig(config, command.domain, user), say)
    }
    case 'export': {
      const { exportCommand } = await import('./commands/export.ts')
      const { progressBar } = await import('./progress.ts')
      const { exportText } = await import('./render.ts')
      const clone = cloneConfig(config, command.domain)
      const watcher = progressBar(process.stderr, clone.name)
      const exported = await exportCommand(clone, command, interruptible(), watcher)
      say(exported, () => exportText(exported))
      return 0
    }
    case 'import': {
      const { importCommand } = await import('./commands/import.ts')
      const { progressBar } = await import('./progress.ts')
      const { importText } = await import('./render.ts')
      const clone = cloneConfig(config, command.domain)
      const watcher = progressBar(process.stderr, clone.name)
      const imported = await importCommand(clone, command, interruptible(), watcher)
      say(imported, () => importText(imported))
      return 0
    }
    case 'prune': {
      const { pruneCommand } = await import('./commands/prune.ts')
      const { domain, dryRun } = command
      const plan = await pruneCommand(cloneConfig(config, domain), dryRun)
      say({ clone: domain, dryRun, ...plan }, () => pruneText(domain, plan, dryRun))
      return 0
    }
    case 'claim':
    case 'release': {
      const { claimCommand, releaseCommand } = await import('./commands/claim.ts')
      const { domain, generation, purpose } = command
      const perform = command.name === 'claim' ? claimCommand : releaseCommand
      const claimed = await perform(cloneConfig(config, domain), generation, purpose)
      say(claimed, () => claimText(command.name, claimed))
      return 0
    }
    case 'rollback': {
      const { rollbackCommand } = await import('./commands/rollback.ts')
      const { progressBar } = await import('./progress.ts')
      const { rollbackText } = await import('./render.ts')
      const clone = cloneConfig(config, command.domain)
      const { generation, dryRun } = command
      const [signal, watcher] = [interruptible(), progressBar(process.stderr, clone.name)]
      const rolled = await rollbackCommand(clone, generation, dryRun, signal, watcher)
      say(rolled, () => rollbackText(rolled))
      return 0
    }
    case 'config check': {
      const domains = await configCheck(config)
      say(
        { domains },
        () => `${command.config}: good, ${domains.length} domain${domains.length === 1 ? '' : 's'}`,
      )
      return 0
    }
    case 'config show': {
      const { showText } = await import('./render.ts')
      const shown = configShow(config, command.domain)
      say({ domains: shown }, () => showText(shown))
      return 0
    }
  }
}

// A reader that left, or a terminal that is gone, must not end a pull before it has let its source go.
for (const stream of [process.stdout, process.stderr]) stream.on('error', () => undefined)
const argv = hideBin(process.argv)
try {
  await program(argv, async command => {
    process.exitCode = await perform(command)
  }).parseAsync()
} catch (error) {
  const failure = toFailure(error)
  if (wantsJson(argv)) print(asJson('error', { failure: failureJson(failure) }))
  complain(describeFailure('clone', failure))
  if (failure.code === 'INTERNAL' && argv.includes('debug')) console.error(failure.cause)
  process.exitCode = failure.exit
}
