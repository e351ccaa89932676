// authorize, revoke and clients as commands: rights beside the configuration, a line for sshd, and what is refused.

import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import t, { type Test } from 'tap'
import { listClients } from '../server/clients/registry.ts'
import { readRights } from '../server/clients/rights.ts'
import { authorize, type AuthorizeOptions } from '../server/commands/authorize.ts'
import { clientsTable } from '../server/commands/clients.ts'
import { revoke } from '../server/commands/revoke.ts'
import { readSourceConfig } from '../server/config/schema.ts'
import { tlsFolder } from '../server/tls/paths.ts'
import { requires } from './nbd/requires.ts'
import { ROOT } from './lab/names.ts'

const skip = requires('ssh-keygen')
const CLI = path.join(ROOT, 'dist', 'server', 'cli.js')
const noInput = (): Promise<string> => Promise.reject(new Error('nothing is read'))

async function folder(t: Test): Promise<string> {
  const dir = await mkdtemp(path.join(tmpdir(), 'nbd-clone-test-'))
  t.teardown(() => rm(dir, { recursive: true, force: true }))
  return dir
}

/** A real key pair. @returns the private key's file */
function keyPair(dir: string, name = 'key', type = 'ed25519'): string {
  const file = path.join(dir, name)
  execFileSync('ssh-keygen', ['-q', '-t', type, '-N', '', '-C', `${name}@standby`, '-f', file])
  return file
}

/** A source whose serve does not run. */
async function aSource(t: Test) {
  const dir = await folder(t)
  const configFile = path.join(dir, 'source.yaml')
  writeFileSync(configFile, `{ runDir: ${dir}, stateDir: ${dir}, domains: { web: {}, db: {} } }`)
  const clients = path.join(dir, 'clients')
  const file = path.join(dir, 'authorized_keys')
  const paths = { clients, serveSocket: path.join(dir, 'serve.sock') }
  const where = { config: readSourceConfig(configFile), configFile: undefined, ...paths }
  const tls = tlsFolder(configFile)
  const options = (changes: Partial<AuthorizeOptions>): AuthorizeOptions => ({
    ...{ key: `${dir}/key.pub`, client: 'alice', domains: 'web', verbs: undefined },
    ...{ bandwidth: undefined, from: undefined, install: true, file, dryRun: false },
    ...changes,
  })
  const run = (changes: Partial<AuthorizeOptions> = {}) =>
    authorize(where, options(changes), noInput)
  return {
    dir,
    clients,
    file,
    run,
    configFile,
    revoke: (client: string) => revoke(paths, tls, client, file),
  }
}

t.test('authorize writes rights and line; a second time replaces both', { skip }, async t => {
  const { dir, clients, file, run } = await aSource(t)
  keyPair(dir)
  const first = await run({ from: '192.0.2.7', bandwidth: '20MiB/s', verbs: 'describe,pull' })
  t.strictSame(await readRights(clients, 'alice'), {
    ...{ domains: ['web'], verbs: ['describe', 'pull'], bandwidth: 20 * 1024 ** 2 },
    from: ['192.0.2.7'],
  })
  t.equal(readFileSync(file, 'utf8'), `${first.line}\n`)
  t.match(
    first.line,
    /^restrict,from="192\.0\.2\.7",command="[^"]* gate --client alice" ssh-ed25519 /,
  )
  t.equal(statSync(file).mode & 0o777, 0o600)
  t.equal(statSync(path.join(clients, 'alice.yaml')).mode & 0o777, 0o600)
  chmodSync(file, 0o640)
  const second = await run({ domains: 'db,gone' })
  t.strictSame(second.unlisted, ['gone'])
  t.equal(readFileSync(file, 'utf8'), `${second.line}\n`)
  t.equal(statSync(file).mode & 0o777, 0o640, 'a mode that was there stays')
  t.strictSame((await readRights(clients, 'alice')).domains, ['db', 'gone'])
  // The line is what ssh itself takes for an authorized_keys line.
  t.match(execFileSync('ssh-keygen', ['-l', '-f', file], { encoding: 'utf8' }), first.fingerprint)
})

t.test('what authorize refuses changes nothing', { skip }, async t => {
  const { dir, clients, file, run } = await aSource(t)
  const key = readFileSync(`${keyPair(dir)}.pub`, 'utf8')
  writeFileSync(file, key)
  const table: [changes: Partial<AuthorizeOptions>, code: string, message: RegExp][] = [
    [{}, 'UNSAFE', /line 1 has the same key/],
    [{ dryRun: true }, 'UNSAFE', /line 1 has the same key/],
    [{ client: '../alice' }, 'USAGE', /client "\.\.\/alice": a name is/],
    [{ client: '-x' }, 'USAGE', /a name is/],
    [{ client: 'local' }, 'USAGE', /no client can be named local/],
    [{ domains: 'web,../x' }, 'USAGE', /domains\.1: a name is/],
    [{ domains: 'all,web' }, 'USAGE', /all stands alone/],
    [{ domains: '' }, 'USAGE', /domains\.0: a name is/],
    [{ verbs: 'pull,shell' }, 'USAGE', /verbs\.1/],
    [{ bandwidth: '20MiB' }, 'USAGE', /bandwidth: a rate is a size a second/],
    [{ bandwidth: '1KiB/s' }, 'USAGE', /at least 128 KiB\/s/],
    [{ from: '192.0.2.7,"command' }, 'USAGE', /from\.1: an IP address, or a range/],
    [{ from: '192.0.2.0/33' }, 'USAGE', /from\.0/],
    [{ from: '192.0.2.7/24' }, 'USAGE', /from\.0: .* the one .* is 192\.0\.2\.0\/24/],
    [{ from: 'example.net' }, 'USAGE', /from\.0/],
    [{ file: '/dev/null' }, 'UNSAFE', /no plain file/],
    [{ file: `${dir}/not/there` }, 'USAGE', /cannot use .*: there is no .*\/not$/],
    [{ file: `${dir}/not/there`, dryRun: true }, 'USAGE', /cannot use/],
    [{ file: `${dir}/key/there` }, 'USAGE', /cannot use .*\/key: ENOTDIR/],
  ]
  for (const [changes, code, message] of table)
    await t.rejects(run(changes), { code, message }, JSON.stringify(changes))
  symlinkSync(file, `${dir}/link`)
  await t.rejects(run({ file: `${dir}/link` }), { code: 'UNSAFE' })
  t.equal(readFileSync(file, 'utf8'), key)
  t.strictSame(await listClients(clients), [])
})

t.test('revoke takes rights and lines away, also when serve does not run', { skip }, async t => {
  const { dir, clients, file, run, revoke } = await aSource(t)
  keyPair(dir)
  keyPair(dir, 'other')
  await run()
  const other = await run({ client: 'bob', key: `${dir}/other.pub`, domains: 'all' })
  t.match(await revoke('alice'), {
    ...{ rights: true, keys: 1, ended: undefined, certificates: undefined },
  })
  t.equal(readFileSync(file, 'utf8'), `${other.line}\n`)
  await t.rejects(readRights(clients, 'alice'), {
    message: 'client alice is not authorized here',
  })
  await t.rejects(revoke('alice'), {
    code: 'USAGE',
    message: /no client alice/,
  })
  t.strictSame(
    (await listClients(clients)).map(({ client }) => client),
    ['bob'],
  )
})

t.test('clients are listed, and one whose file is wrong says so', async t => {
  const { clients } = await aSource(t)
  t.match(clientsTable(await listClients(clients)), /no client is authorized/)
  mkdirSync(clients)
  writeFileSync(path.join(clients, 'bob.yaml'), '{ domains: all, bandwidth: 20MiB/s }')
  writeFileSync(path.join(clients, 'eve.yaml'), '{ domains: all, shell: true }')
  writeFileSync(path.join(clients, '.hidden.yaml'), '')
  const lines = clientsTable(await listClients(clients)).split('\n')
  t.match(lines[1], /^bob +all +describe,pull,digests +20 MiB\/s +anywhere$/)
  t.match(lines[2], /^eve +may do nothing: .*eve\.yaml:1: shell: unknown key$/)
  t.equal(lines.length, 3)
})

t.test(
  'the program: a line on stdout that can be appended, the rest on stderr',
  { skip },
  async t => {
    const { dir, configFile, clients } = await aSource(t)
    const key = readFileSync(`${keyPair(dir)}.pub`, 'utf8')
    const clone = async (args: string[], input = '') => {
      const child = spawn(process.execPath, [
        ...process.execArgv,
        CLI,
        ...args,
        '--config',
        configFile,
      ])
      child.stdin.on('error', () => undefined).end(input)
      const [out, err] = [[], []] as [Buffer[], Buffer[]]
      child.stdout.on('data', (part: Buffer) => out.push(part))
      child.stderr.on('data', (part: Buffer) => err.push(part))
      const [code] = (await once(child, 'close')) as [number]
      return { code, stdout: Buffer.concat(out).toString(), stderr: Buffer.concat(err).toString() }
    }
    const dry = await clone(
      ['authorize', '-', '--client', 'alice', '--domains', 'web', '--dry-run'],
      key,
    )
    t.match(dry, { code: 0, stdout: /^restrict,command="[^\n]*\n$/, stderr: /nothing was changed/ })
    t.match(dry.stdout, ` gate --client alice --config ${configFile}"`)
    t.notOk(existsSync(clients))
    const done = await clone(
      ['authorize', '-', '--client', 'alice', '--domains', 'web', '--json'],
      key,
    )
    t.match(JSON.parse(done.stdout), {
      command: 'authorize',
      client: 'alice',
      installed: undefined,
    })
    t.match(await clone(['clients']), { code: 0, stdout: /^CLIENT .*\nalice +web / })
    t.match(await clone(['revoke', 'nobody', '--file', `${dir}/keys`]), {
      code: 2,
      stderr: /no client nobody/,
    })
    t.match(
      await clone(['authorize', path.join(dir, 'key'), '--client', 'a', '--domains', 'all']),
      {
        code: 2,
        stderr: /private key/,
      },
    )
  },
)

t.test('a link in the way of its keys keeps no client from being revoked', { skip }, async t => {
  const { dir, clients, configFile, run } = await aSource(t)
  keyPair(dir)
  await run({ install: false })
  symlinkSync(dir, path.join(dir, 'link'))
  const file = path.join(dir, 'link/authorized_keys')
  const paths = { clients, serveSocket: path.join(dir, 'serve.sock') }
  await t.rejects(revoke(paths, tlsFolder(configFile), 'alice', file), {
    code: 'UNSAFE',
    message: /^client alice has no rights any more, but: .*link leads through a link to/,
  })
  t.strictSame(await listClients(clients), [])
  await t.rejects(run({ file }), { code: 'UNSAFE', message: /leads through a link/ })
  t.strictSame(await listClients(clients), [], 'and to authorize one changes nothing')
})
