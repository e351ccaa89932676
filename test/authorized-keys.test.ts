// Public keys and lines of authorized_keys: what is taken for one, the line that we write, and finding it again.

import { execFileSync } from 'node:child_process'
import { chmodSync, readFileSync, writeFileSync } from 'node:fs'
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
import { requires } from './nbd/requires.ts'

const skip = requires('ssh-keygen')
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
