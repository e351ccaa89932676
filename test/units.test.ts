// The systemd units in examples/: accepted by systemd itself, hardened, and starting commands that can be typed.

import { execa } from 'execa'
import { readFileSync } from 'node:fs'
import { readdir } from 'node:fs/promises'
import path from 'node:path'
import t from 'tap'
import { program as clone, type Command } from '../client/program.ts'
import { program as cloneServer, type Actions } from '../server/program.ts'
import { ROOT } from './lab/names.ts'

const DIRECTORY = path.join(ROOT, 'examples', 'systemd')
const UNITS = ['clone-pull@.service', 'clone-pull@.timer', 'clone-server.service']

/** Settings of a unit file, in order; comments left out. */
function settings(unit: string): Map<string, string> {
  const lines = readFileSync(path.join(DIRECTORY, unit), 'utf8').split('\n')
  return new Map(
    lines.flatMap(line => {
      const [, key, value] = /^(\w+)=(.*)$/.exec(line) ?? []
      return key === undefined || value === undefined ? [] : [[key, value] as const]
    }),
  )
}

t.test('systemd-analyze verify has nothing to say about any unit', async t => {
  t.strictSame((await readdir(DIRECTORY)).sort(), UNITS)
  for (const unit of UNITS) {
    const { all } = await execa('systemd-analyze', ['verify', path.join(DIRECTORY, unit)], {
      all: true,
    })
    t.equal(all, '', unit)
  }
})

t.test('systemd-analyze verify does find a wrong setting', async t => {
  const directory = t.testdir({
    'wrong.service': '[Service]\nExecStart=/bin/true\nKilMode=process\n',
  })
  const { all } = await execa(
    'systemd-analyze',
    ['verify', path.join(directory, 'wrong.service')],
    {
      all: true,
      reject: false,
    },
  )
  t.match(all, /KilMode/)
})

t.test('the services are exposed no more than they must be', async t => {
  for (const unit of UNITS.filter(name => name.endsWith('.service'))) {
    const { stdout } = await execa('systemd-analyze', [
      ...['security', '--offline=yes', '--no-pager', path.join(DIRECTORY, unit)],
    ])
    const level = Number(/Overall exposure level for \S+ (\d+\.\d+)/.exec(stdout)?.[1])
    t.comment(`${unit}: exposure level ${level} of 10`)
    t.ok(level > 0 && level <= 4, `${unit}: ${level}`)
  }
})

t.test(
  'nothing that serve has started is killed with it: the dead-man must outlive it',
  async t => {
    const unit = settings('clone-server.service')
    t.match(Object.fromEntries(unit), {
      KillMode: 'process',
      OOMPolicy: 'continue',
      Restart: 'on-failure',
      Type: 'notify',
      NotifyAccess: 'all',
    })
    t.notOk(unit.has('ExecStopPost'))
  },
)

const nothing = (): Promise<void> => Promise.resolve()

t.test('the units start commands that can be typed', async t => {
  const [env, ours, ...argv] = settings('clone-server.service').get('ExecStart')?.split(' ') ?? []
  t.strictSame([env, ours], ['/usr/bin/env', 'clone-server'])
  let served = 0
  const actions = new Proxy({}, { get: () => nothing }) as Actions
  await cloneServer(argv, {
    ...actions,
    serve: async () => {
      served++
    },
  }).parseAsync()
  t.equal(served, 1)

  const pull = settings('clone-pull@.service').get('ExecStart')?.replace('%i', 'mydomain')
  const commands: Command[] = []
  t.match(pull, /^\/usr\/bin\/env clone /)
  await clone(pull?.split(' ').slice(2) ?? [], async command => {
    commands.push(command)
  }).parseAsync()
  t.match(commands, [{ name: 'pull', ifDue: true, dryRun: false }])
})
