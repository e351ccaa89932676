#!/usr/bin/env node
// The lab's command line, behind `npm run -s lab -- VERB`. Commands in the hosts go by enter.sh instead (see lab.sh).

import { spawn } from 'node:child_process'
import yargs from 'yargs'
import { hideBin } from 'yargs/helpers'
import { describeFailure, Failure, toFailure } from '../../shared/failures.ts'
import { ask, readStatus, startKeeper, takeDown } from './control.ts'
import { enterArgv } from './enter.ts'
import { guestExec } from './guest.ts'
import { HOSTS, isHost, STORES, type HostName, type Store } from './names.ts'
import { readProcess } from './processes.ts'

const USAGE = `npm run -s lab -- VERB

  up                make the lab; returns when the guest's agent answers
  down              remove it; lists what is left and exits 1 if anything is
  status            what is up
  source CMD...     run CMD on the host source
  standby CMD...    run CMD on the host standby
  guest CMD...      run CMD in the guest mydomain, through its agent
  power-cut HOST    take the power away: what was not synced is lost
  boot HOST         switch it on again
  net-cut           pull the plug between the hosts
  net-heal          and put it back`

const say = (line: string): void => void process.stderr.write(`lab: ${line}\n`)

async function up(store: Store, owner: number | undefined): Promise<number> {
  const status = await readStatus()
  if (status) {
    if (owner !== undefined) throw new Failure('LOCKED', 'another lab is up on this machine')
    if (status.state === 'up' && HOSTS.every(host => status.hosts[host]) && status.guest) {
      say(`the lab is up already (store: ${status.store})`)
      return 0
    }
    throw new Failure('UNSAFE', 'a lab is there, but not in order', {
      remedy: 'npm run -s lab -- status, or: npm run -s lab -- down',
    })
  }
  const begun = Date.now()
  const options = { store, ...(owner === undefined ? {} : { owner: ownerOf(owner) }) }
  const interrupt = new AbortController()
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const)
    process.once(name, () => interrupt.abort())
  await startKeeper(options, say, interrupt.signal)
  say(`up after ${((Date.now() - begun) / 1000).toFixed(1)} s`)
  return 0
}

function ownerOf(pid: number): { pid: number; started: string } {
  const process = readProcess(pid)
  if (!process) throw new Failure('USAGE', `--owner: there is no process ${pid}`)
  return { pid, started: process.started }
}

async function down(): Promise<number> {
  const left = await takeDown()
  for (const line of left) process.stdout.write(`${line}\n`)
  return left.length === 0 ? 0 : 1
}

async function status(): Promise<number> {
  const found = await readStatus()
  if (!found) {
    process.stdout.write('no lab is up\n')
    return 3
  }
  const state = (on: boolean): string => (on ? 'on' : 'off')
  const rows = [
    ['lab', found.state],
    ['keeper', `process ${found.keeper}`],
    ['owner', found.owner === undefined ? 'none, stays until down' : `process ${found.owner}`],
    ['source', state(found.hosts.source)],
    ['standby', `${state(found.hosts.standby)}, store on ${found.store}`],
    ['guest', found.guest ? 'its agent answers' : 'its agent does not answer'],
  ]
  for (const [name = '', value = ''] of rows) process.stdout.write(`${name.padEnd(8)} ${value}\n`)
  return 0
}

async function guest(argv: readonly string[]): Promise<number> {
  const result = await guestExec(argv)
  process.stdout.write(result.stdout)
  process.stderr.write(result.stderr)
  return result.exitCode
}

/** `lab.sh` never comes here for these, but `node cli.js source ...` should do the same. */
async function enter(host: HostName, argv: readonly string[]): Promise<number> {
  const [file, args] = enterArgv(host, argv)
  for (const name of ['SIGINT', 'SIGQUIT'] as const) process.on(name, () => undefined)
  const child = spawn(file, args, { stdio: 'inherit' })
  return new Promise(resolve => {
    child.once('exit', code => resolve(code ?? 1))
  })
}

async function dispatch(argv: string[]): Promise<number> {
  const [verb, ...rest] = argv
  // Their arguments are somebody else's: no option parser may look at them.
  if (isHost(verb)) return enter(verb, rest)
  if (verb === 'guest') return guest(rest)

  let exit: Promise<number> = Promise.resolve(0)
  const host = { choices: HOSTS, demandOption: true } as const
  const change = (method: string, params: object = {}): void => {
    exit = ask(method, params).then(() => 0)
  }
  await yargs(argv)
    .scriptName('lab')
    .usage(USAGE)
    .command(
      'up',
      false,
      y =>
        y
          .option('store', { choices: STORES, default: 'xfs' as const })
          .option('owner', { type: 'number' }),
      args => void (exit = up(args.store, args.owner)),
    )
    .command('down', false, {}, () => void (exit = down()))
    .command('status', false, {}, () => void (exit = status()))
    .command(
      'power-cut <host>',
      false,
      y => y.positional('host', host),
      ({ host }) => change('power-cut', { host }),
    )
    .command(
      'boot <host>',
      false,
      y => y.positional('host', host).option('guest', { type: 'boolean', default: false }),
      ({ host, guest }) => change('boot', { host, guest }),
    )
    .command('net-cut', false, {}, () => change('net-cut'))
    .command('net-heal', false, {}, () => change('net-heal'))
    .demandCommand(1, 'which verb?')
    .strict()
    .version(false)
    .fail((message, error: Error | undefined) => {
      throw error ?? new Failure('USAGE', message, { remedy: 'npm run -s lab -- --help' })
    })
    .parse()
  return exit
}

dispatch(hideBin(process.argv)).then(
  status => (process.exitCode = status),
  (error: unknown) => {
    process.stderr.write(`${describeFailure('lab', error)}\n`)
    process.exitCode = toFailure(error).exit
  },
)
