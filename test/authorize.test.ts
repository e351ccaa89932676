// authorize, revoke and clients: the key, the line for sshd, the file it goes into, and the rights beside the configuration.

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
import {
  authorizedLine,
  forcedCommand,
  isGateOf,
  readKeyLine,
  withLine,
  withoutLines,
} from '../server/clients/authorized-keys.ts'
import { programWords } from '../server/clients/program-words.ts'
import { parsePublicKey, readPublicKey, type PublicKey } from '../server/clients/public-key.ts'
import { listClients } from '../server/clients/registry.ts'
import { readRights } from '../server/clients/rights.ts'
import { authorize, type AuthorizeOptions } from '../server/commands/authorize.ts'
import { clientsTable } from '../server/commands/clients.ts'
import { revoke } from '../server/commands/revoke.ts'
import { readSourceConfig } from '../server/config/schema.ts'
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

t.test('a public key is taken as a file, as text or from standard input', { skip }, async t => {
  const dir = await folder(t)
  const file = `${keyPair(dir)}.pub`
  const text = readFileSync(file, 'utf8')
  const printed = execFileSync('ssh-keygen', ['-l', '-f', file], { encoding: 'utf8' })
  const [type = '', blob = ''] = text.split(' ')
  for (const [key, input] of [
    [file, noInput],
    [text, noInput],
    ['-', () => Promise.resolve(`# a comment\n\n${text}`)],
  ] as const)
    t.match(await readPublicKey(key, input), {
      ...{ type, blob, comment: 'key@standby' },
      fingerprint: printed.split(' ')[1] ?? 'none',
    })
  for (const kind of ['rsa', 'ecdsa']) {
    const other = readFileSync(`${keyPair(dir, kind, kind)}.pub`, 'utf8')
    t.equal(parsePublicKey('it', other).blob, other.split(' ')[1])
  }
  const hidden = parsePublicKey('it', `${type} ${blob} me\x1b[2J\u2028" command="sh`)
  t.equal(hidden.comment, 'me[2J" command="sh')
})

t.test('what is no single public key is refused, a private one above all', { skip }, async t => {
  const dir = await folder(t)
  const file = keyPair(dir)
  const good = readFileSync(`${file}.pub`, 'utf8').trim()
  const [type = '', blob = ''] = good.split(' ')
  const table: [text: string, message: RegExp][] = [
    [readFileSync(file, 'utf8'), /that is a private key, which must never leave its host/],
    ['PuTTY-User-Key-File-3: ssh-ed25519\n', /that is a private key/],
    [`restrict ${good}`, /the line begins with options/],
    [`command="sh -c 'ssh-rsa '" ${good}`, /the line begins with options/],
    [`${good}\n${good}\n`, /2 lines where one public key should be/],
    [`${good}\nrestrict,command="sh" ${good}`, /2 lines/],
    ['', /no public key of a type that is known here/],
    ['ssh-dss AAAAB3NzaC1kc3MAAACBAP', /no public key of a type that is known/],
    [`${type} AAAA`, /the public key is damaged/],
    [`ssh-rsa ${blob}`, /the public key is damaged/],
    [`${type} ${blob.slice(0, 20)}`, /damaged/],
    [`${type} ${blob}AAAA`, /damaged/],
    ['x'.repeat(20_000), /too long/],
  ]
  for (const [text, message] of table)
    t.throws(() => parsePublicKey('it', text), { code: 'USAGE', message }, text.slice(0, 40))
  await t.rejects(readPublicKey(path.join(dir, 'not'), noInput), {
    code: 'USAGE',
    message: /no such file, and no key either/,
  })
})

const KEY: PublicKey = {
  type: 'ssh-ed25519',
  blob: 'AAAAC3',
  comment: 'me',
  fingerprint: 'SHA256:x',
}

t.test('the line for sshd', async t => {
  const command = forcedCommand(['clone-server'], 'alice', undefined)
  t.equal(command, 'clone-server gate --client alice')
  t.equal(
    authorizedLine(KEY, command, ['192.0.2.7', '2001:db8::/32']),
    'restrict,from="192.0.2.7,2001:db8::/32",command="clone-server gate --client alice" ssh-ed25519 AAAAC3 me',
  )
  t.equal(
    authorizedLine({ ...KEY, comment: '' }, command, undefined),
    'restrict,command="clone-server gate --client alice" ssh-ed25519 AAAAC3',
  )
  t.equal(
    forcedCommand(['/n/node', '/p/dist/server/cli.js'], 'a', '/etc/x/source.yaml'),
    '/n/node /p/dist/server/cli.js gate --client a --config /etc/x/source.yaml',
  )
  for (const word of ['/a b', "/a'", '/a"', '/a;b', '/a$b', '/a\\', '/a%', ''])
    t.throws(() => forcedCommand(['clone-server'], 'a', word), { code: 'USAGE' }, word)
})

t.test('a bare name only where sshd finds both it and node', async t => {
  const dir = await folder(t)
  const put = (name: string, mode: number): void => {
    writeFileSync(path.join(dir, name), '')
    chmodSync(path.join(dir, name), mode)
  }
  t.match((await programWords([dir])).at(-1), /\/server\/cli\.[jt]s$/)
  put('clone-server', 0o755)
  put('node', 0o644)
  t.equal((await programWords([dir])).length, 2)
  put('node', 0o755)
  t.strictSame(await programWords([dir]), ['clone-server'])
})

t.test('a line is recognised by its forced command, and by nothing else', async t => {
  const table: [line: string, is: boolean][] = [
    ['restrict,command="clone-server gate --client alice" ssh-ed25519 AAAA me', true],
    ['command="clone-server gate --client alice",restrict,from="a b" ssh-ed25519 AAAA', true],
    ['  restrict,command="/opt/x/clone-server gate --client alice" ssh-ed25519 AAAA', true],
    ['command="/n/node /p/server/cli.js gate --client alice --config /c.yaml" ssh-rsa AAAA', true],
    ['restrict,command="clone-server gate --client alice2" ssh-ed25519 AAAA me', false],
    ['restrict,command="clone-server gate --client alice; sh" ssh-ed25519 AAAA me', false],
    ['restrict,command="clone-server gate --client alice --x y" ssh-ed25519 AAAA me', false],
    ['restrict,command="sh -c clone-server gate --client alice" ssh-ed25519 AAAA me', false],
    ['restrict,command="evil gate --client alice" ssh-ed25519 AAAA me', false],
    ['restrict,command="clone-server status" ssh-ed25519 AAAA me', false],
    ['# restrict,command="clone-server gate --client alice" ssh-ed25519 AAAA', false],
    ['ssh-ed25519 AAAA command="clone-server gate --client alice"', false],
    ['environment="X=\\"command=\\"",restrict ssh-ed25519 AAAA alice', false],
    ['', false],
    ['"', false],
  ]
  for (const [line, is] of table) t.equal(isGateOf(readKeyLine(line)?.command, 'alice'), is, line)
})

t.test('a file gets one line per client, and keeps all others as they are', async t => {
  const line = (client: string, blob: string): string =>
    `restrict,command="clone-server gate --client ${client}" ssh-ed25519 ${blob} ${client}`
  const admin = '# admins\nssh-ed25519 ADMIN root'
  t.equal(withLine('', 'a', line('a', 'A1')), `${line('a', 'A1')}\n`)
  t.equal(withLine(admin, 'a', line('a', 'A1')), `${admin}\n${line('a', 'A1')}\n`)
  const two = `${line('a', 'A1')}\n${admin}\n${line('b', 'B1')}\n${line('a', 'A0')}\n`
  t.equal(
    withLine(two, 'a', line('a', 'A2')),
    `${line('a', 'A2')}\n${admin}\n${line('b', 'B1')}\n`,
    'in the place of its older ones',
  )
  t.equal(withLine(two, 'a', line('a', 'A1')), `${line('a', 'A1')}\n${admin}\n${line('b', 'B1')}\n`)
  for (const other of ['ADMIN', 'B1'])
    t.throws(() => withLine(two, 'a', line('a', other)), {
      code: 'UNSAFE',
      message: /line [34] has the same key, with other options/,
    })
  t.strictSame(withoutLines(two, 'a'), { text: `${admin}\n${line('b', 'B1')}\n`, removed: 2 })
  t.strictSame(withoutLines(two, 'c'), { text: two, removed: 0 })
})

/** A source whose serve does not run. */
async function aSource(t: Test) {
  const dir = await folder(t)
  const configFile = path.join(dir, 'source.yaml')
  writeFileSync(configFile, `{ runDir: ${dir}, stateDir: ${dir}, domains: { web: {}, db: {} } }`)
  const clients = path.join(dir, 'clients')
  const file = path.join(dir, 'authorized_keys')
  const where = { config: readSourceConfig(configFile), configFile: undefined, clients }
  const paths = { clients, serveSocket: path.join(dir, 'serve.sock') }
  const options = (changes: Partial<AuthorizeOptions>): AuthorizeOptions => ({
    ...{ key: `${dir}/key.pub`, client: 'alice', domains: 'web', verbs: undefined },
    ...{ bandwidth: undefined, from: undefined, install: true, file, dryRun: false },
    ...changes,
  })
  const run = (changes: Partial<AuthorizeOptions> = {}) =>
    authorize(where, options(changes), noInput)
  return { dir, clients, file, paths, run, configFile }
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
    [{ bandwidth: '20MiB' }, 'USAGE', /bandwidth: a bandwidth is a size a second/],
    [{ bandwidth: '1KiB/s' }, 'USAGE', /at least 128 KiB\/s/],
    [{ from: '192.0.2.7,"command' }, 'USAGE', /from\.1: an IP address, or a range/],
    [{ from: '192.0.2.0/33' }, 'USAGE', /from\.0/],
    [{ from: 'example.net' }, 'USAGE', /from\.0/],
    [{ file: '/dev/null' }, 'UNSAFE', /no plain file/],
    [{ file: `${dir}/not/there` }, 'USAGE', /cannot use .*ENOENT/],
  ]
  for (const [changes, code, message] of table)
    await t.rejects(run(changes), { code, message }, JSON.stringify(changes))
  symlinkSync(file, `${dir}/link`)
  await t.rejects(run({ file: `${dir}/link` }), { code: 'UNSAFE' })
  t.equal(readFileSync(file, 'utf8'), key)
  t.strictSame(
    (await listClients(clients)).map(({ client }) => client),
    ['alice'],
    'but for rights whose key could not be written: without a key they let nobody in',
  )
})

t.test('a new file belongs to whoever its directory belongs to', { skip }, async t => {
  if (process.getuid?.() !== 0) return
  const { dir, run } = await aSource(t)
  keyPair(dir)
  const home = path.join(dir, '.ssh')
  mkdirSync(home, { mode: 0o700 })
  execFileSync('chown', ['65534:65534', home])
  const file = path.join(home, 'authorized_keys')
  await run({ file })
  t.match(statSync(file), { uid: 65534, gid: 65534 })
})

t.test('revoke takes rights and lines away, also when serve does not run', { skip }, async t => {
  const { dir, clients, file, paths, run } = await aSource(t)
  keyPair(dir)
  keyPair(dir, 'other')
  await run()
  const other = await run({ client: 'bob', key: `${dir}/other.pub`, domains: 'all' })
  t.match(await revoke(paths, 'alice', file), { rights: true, keys: 1, ended: undefined })
  t.equal(readFileSync(file, 'utf8'), `${other.line}\n`)
  await t.rejects(readRights(clients, 'alice'), {
    message: 'client alice is not authorized here',
  })
  await t.rejects(revoke(paths, 'alice', file), {
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
