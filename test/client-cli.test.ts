// The `clone` program as cron, a terminal and a script meet it: output, exit status, signals.

import t, { type Test } from 'tap'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, existsSync, openSync, writeSync } from 'node:fs'
import { readdir } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { program, type Command } from '../client/program.ts'
import { exitStatusHelp } from '../shared/help.ts'
import { FAILURES } from '../shared/failures.ts'
import { fakeSource, type FakeSource } from './client/fake-source.ts'
import { ROOT } from './lab/names.ts'

const CLI = path.join(ROOT, 'dist', 'client', 'cli.js')

interface Ran {
  readonly code: number | null
  readonly stdout: string
  readonly stderr: string
}

function start(
  source: FakeSource,
  args: string[],
): {
  pid: number
  kill: (signal: NodeJS.Signals) => boolean
  closeStdout: () => void
  ended: Promise<Ran>
} {
  const all = [CLI, ...args, '--config', source.configFile]
  const child = spawn(process.execPath, all, { stdio: ['ignore', 'pipe', 'pipe'] })
  let stdout = ''
  let stderr = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  const ended = once(child, 'close').then(([code]) => ({
    code: code as number | null,
    stdout,
    stderr,
  }))
  return {
    pid: child.pid ?? 0,
    kill: signal => child.kill(signal),
    closeStdout: () => child.stdout.destroy(),
    ended,
  }
}

async function aSource(t: Test): Promise<FakeSource> {
  const source = await fakeSource({ vda: Buffer.alloc(3 * 1024 * 1024, 7) })
  t.teardown(() => source[Symbol.asyncDispose]())
  return source
}

t.test('under cron a good pull is silent, and a bad one says why in one sentence', async t => {
  const source = await aSource(t)
  t.strictSame(await start(source, ['pull', 'mydomain']).ended, { code: 0, stdout: '', stderr: '' })
  const image = openSync(path.join(source.store, 'mydomain', 'current', 'vda.raw'), 'r+')
  writeSync(image, 'x', 5)
  closeSync(image)
  const verify = await start(source, ['verify', 'mydomain']).ended
  t.equal(verify.code, 21)
  t.match(verify.stdout, /vda\.raw: chunk 0 \(byte 0\): differs/)
  t.match(
    verify.stderr,
    /^clone: mydomain: generation \S+ is damaged\n {2}hint: .*\n {2}code: INTEGRITY \(exit 21\)\n$/,
  )
  const unknown = await start(source, ['pull', 'yourdomain', '--json']).ended
  t.equal(unknown.code, 2)
  t.match(JSON.parse(unknown.stdout), { schema: 1, failure: { code: 'USAGE', exit: 2 } })
  t.match(unknown.stderr, 'clone: unknown domain "yourdomain"; configured: mydomain')
  const brief = await start(source, ['pull', 'mydomain', '--max-duration', '5', '--json=true'])
    .ended
  t.equal(brief.code, 2)
  t.match(JSON.parse(brief.stdout), { failure: { code: 'USAGE', exit: 2 } })
  t.match(brief.stderr, /^clone: --max-duration 5: a duration is a number with/)
})

t.test('a reader that left ends nothing: the pull goes on to its end', async t => {
  const source = await aSource(t)
  const pull = start(source, ['pull', 'mydomain', '--json'])
  pull.closeStdout()
  t.strictSame(await pull.ended, { code: 0, stdout: '', stderr: '' })
})

/** Waits until a pull has bytes of its recovery point in staging. */
async function untilStaged(staging: string): Promise<void> {
  const staged = async () =>
    (await readdir(staging).catch(() => [])).some(name =>
      existsSync(path.join(staging, name, 'vda.raw')),
    )
  while (!(await staged())) await sleep(20)
}

t.test('Ctrl-C in the middle: exit 130, the source let go, nothing published', async t => {
  const source = await aSource(t)
  await source.serveNbd(['--filter=delay', 'rdelay=30'])
  const pull = start(source, ['pull', 'mydomain'])
  const staging = path.join(source.store, 'mydomain', 'staging')
  await untilStaged(staging)
  pull.kill('SIGINT')
  const { code, stderr } = await pull.ended
  t.equal(code, 130)
  t.match(stderr, 'interrupted by SIGINT')
  t.equal(source.calls.at(-1), 'session.release')
  t.strictSame(await readdir(path.join(staging, '../generations')), [])
  t.equal(source.gates(), 0)
})

t.test('SIGKILL in the middle: the gate goes too, and the next pull clears up', async t => {
  const source = await aSource(t)
  await source.serveNbd(['--filter=delay', 'rdelay=30'])
  const pull = start(source, ['pull', 'mydomain'])
  const staging = path.join(source.store, 'mydomain', 'staging')
  await untilStaged(staging)
  pull.kill('SIGKILL')
  await pull.ended
  for (let i = 0; i < 100 && source.gates() > 0; i++) await sleep(50)
  t.equal(source.gates(), 0)
  t.equal((await readdir(staging)).length, 1)
  await source.serveNbd()
  t.equal((await start(source, ['pull', 'mydomain']).ended).code, 0)
  t.strictSame(await readdir(staging), [])
})

t.test('the command line becomes a command, and mistakes are USAGE', async t => {
  const seen: Command[] = []
  const parse = async (line: string) =>
    await program(line.split(' '), command => {
      seen.push(command)
      return Promise.resolve()
    }).parseAsync()
  await parse('pull a b --if-due --config /x.yaml')
  await parse('verify a 7')
  await parse('config show a --json')
  await parse('verify a --manifests-only')
  await parse('verify a --history')
  await parse('claim a 7 test-boot')
  t.match(seen, [
    {
      name: 'pull',
      domains: ['a', 'b'],
      ifDue: true,
      all: false,
      config: '/x.yaml',
      logLevel: 'warn',
    },
    { name: 'verify', domain: 'a', generation: '7' },
    { name: 'config show', domain: 'a', json: true },
    { name: 'verify manifests', domain: 'a' },
    { name: 'verify history', domain: 'a' },
    { name: 'claim', domain: 'a', generation: '7', purpose: 'test-boot' },
  ])
  for (const line of [
    'frob',
    'pull a --frob',
    'list',
    'verify',
    'verify a 7 --history',
    'verify a --history --manifests-only',
    'claim a 7',
    'config',
    'config frob',
    'status --log-level loud',
  ])
    await t.rejects(parse(line), { code: 'USAGE' }, line)
})

t.test('help names every way to fail', async t => {
  const help = await program().getHelp()
  for (const { exit, meaning } of Object.values(FAILURES)) {
    t.match(help, meaning)
    t.match(exitStatusHelp(), new RegExp(`^ *${exit}  ${meaning}$`, 'm'))
  }
})
