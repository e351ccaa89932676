// The commands about certificates: what they make, for whom, and what is revoked.

import 'reflect-metadata'
import { execFileSync } from 'node:child_process'
import { X509Certificate } from 'node:crypto'
import {
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { X509Crl } from '@peculiar/x509'
import t, { type Test } from 'tap'
import { renderRevoked, revoke } from '../server/commands/revoke.ts'
import { tlsInit, tlsIssue, tlsList, tlsRenew, tlsRevoke } from '../server/commands/tls.ts'
import { tlsFolder, type TlsFolder } from '../server/tls/paths.ts'
import { tryLock } from '../shared/host/lock.ts'
import { requires } from './nbd/requires.ts'

const once = { 'dry-run': false } as const
const mode = (file: string): string => (statSync(file).mode & 0o777).toString(8)

interface Made {
  readonly config: string
  readonly dir: string
  readonly tls: TlsFolder
}

function place(t: Test): Made {
  const dir = mkdtempSync(path.join(tmpdir(), 'nbd-clone-test-'))
  t.teardown(() => rmSync(dir, { recursive: true, force: true }))
  const config = path.join(dir, 'source.yaml')
  writeFileSync(config, `{ runDir: ${dir}/run, stateDir: ${dir}/state }\n`)
  return { dir, config, tls: tlsFolder(config) }
}

async function made(t: Test): Promise<Made> {
  const all = place(t)
  await tlsInit({
    config: all.config,
    host: 'alpha.example,192.0.2.7,2001:db8::7',
    days: 10,
    ...once,
  })
  return all
}

const issue = (config: string, name: string, out: string) =>
  tlsIssue({ config, name, out, days: 1000, ...once })

t.test('tls init makes what only its owner can read, and overwrites nothing', async t => {
  const { config, dir, tls } = place(t)
  const dry = await tlsInit({ config, host: undefined, days: 10, 'dry-run': true })
  t.match(dry.text, /would make an authority/)
  t.strictSame(readdirSync(dir), ['source.yaml'], 'a dry run makes nothing')
  await tlsInit({ config, host: 'alpha.example,192.0.2.7', days: 10, ...once })
  t.equal(mode(tls.folder), '700')
  const names = readdirSync(tls.folder)
  t.strictSame(names.sort(), [
    ...['ca-cert.pem', 'ca-crl.pem', 'ca-key.pem'],
    ...['issued.json', 'server-cert.pem', 'server-key.pem'],
  ])
  for (const name of names) t.equal(mode(path.join(tls.folder, name)), '600', name)
  const before = readFileSync(tls.caKey, 'utf8')
  await t.rejects(tlsInit({ config, host: 'alpha', days: 10, ...once }), {
    code: 'USAGE',
    message: /is there already: nothing is overwritten/,
  })
  t.equal(readFileSync(tls.caKey, 'utf8'), before)
  t.strictSame(readdirSync(dir), ['source.yaml', 'tls'], 'and leaves nothing beside')
})

t.test('certificates say what they are for, and end with their authority', async t => {
  const { config, dir, tls } = await made(t)
  const out = path.join(dir, 'standby1')
  await issue(config, 'standby1', out)
  t.equal(mode(out), '700')
  t.strictSame(readdirSync(out), ['ca-cert.pem', 'client-cert.pem', 'client-key.pem'])
  t.equal(mode(path.join(out, 'client-key.pem')), '600')
  const read = (file: string): X509Certificate => new X509Certificate(readFileSync(file))
  const ca = read(tls.caCert)
  const server = read(tls.serverCert)
  const client = read(path.join(out, 'client-cert.pem'))
  t.ok(ca.ca)
  t.notOk(server.ca || client.ca)
  for (const one of [server, client]) t.ok(one.checkIssued(ca) && one.verify(ca.publicKey))
  t.equal(client.subject, 'CN=standby1')
  t.equal(client.validTo, ca.validTo, '1000 days were asked for')
  t.ok(Date.parse(client.validFrom) < Date.now() - 3600_000, 'a clock may be an hour behind')
  t.strictSame([client.keyUsage, server.keyUsage], [['1.3.6.1.5.5.7.3.2'], ['1.3.6.1.5.5.7.3.1']])
  t.equal(server.checkHost('alpha.example'), 'alpha.example')
  t.equal(server.checkIP('192.0.2.7'), '192.0.2.7')
  t.ok(server.checkIP('2001:db8::7'))
  t.equal(client.publicKey.asymmetricKeyDetails?.namedCurve, 'prime256v1')
  await t.rejects(issue(config, 'standby1', out), { code: 'USAGE', message: /is there already/ })
})

t.test('openssl agrees, also on what is revoked', { skip: requires('openssl') }, async t => {
  const { config, dir, tls } = await made(t)
  const files = ['one', 'two'].map(name => path.join(dir, name, 'client-cert.pem'))
  for (const name of ['one', 'two']) await issue(config, name, path.join(dir, name))
  const verify = (file: string): string => {
    const checks = ['-crl_check_all', '-CRLfile', tls.crl, '-x509_strict', '-purpose', 'sslclient']
    try {
      return execFileSync('openssl', ['verify', '-CAfile', tls.caCert, ...checks, file], {
        encoding: 'utf8',
        stdio: 'pipe',
      })
    } catch (error) {
      return (error as { stderr: string }).stderr
    }
  }
  for (const file of files) t.match(verify(file), /: OK/)
  await tlsRevoke({ config, name: 'one', ...once })
  t.match(verify(files[0] ?? ''), /certificate revoked/)
  t.match(verify(files[1] ?? ''), /: OK/)
})

t.test('names that no client may have, and wrong words, are refused', async t => {
  const { config, dir } = await made(t)
  const out = path.join(dir, 'x')
  for (const [name, message] of [
    ['../x', /a name is 1 to 100/],
    ['local', /no client can be named local/],
    ['operator', /no client can be named operator/],
    ['a'.repeat(65), /at most 64 characters/],
  ] as const)
    await t.rejects(issue(config, name, out), { code: 'USAGE', message })
  const server = { config, days: 10, ...once }
  await t.rejects(tlsRenew({ ...server, host: 'a b' }), { code: 'USAGE', message: /--host "a b"/ })
  await t.rejects(tlsRenew({ ...server, host: 'a', days: 0.5 }), { message: /--days is a whole/ })
  await t.rejects(tlsRevoke({ config, name: 'nobody', ...once }), {
    code: 'USAGE',
    message: 'no certificate was issued for nobody',
  })
  await t.rejects(tlsList({ config: path.join(dir, 'elsewhere/source.yaml') }), {
    code: 'USAGE',
    remedy: 'clone-server tls init',
  })
})

t.test('the index knows all, and revoking again mends a list that was not written', async t => {
  const { config, dir, tls } = await made(t)
  const empty = readFileSync(tls.crl)
  const revoked = (): number => new X509Crl(readFileSync(tls.crl)).entries.length
  await issue(config, 'one', path.join(dir, 'one'))
  await issue(config, 'one', path.join(dir, 'again'))
  t.match((await tlsRevoke({ config, name: 'one', 'dry-run': true })).json, { revoked: 2 })
  t.match(await tlsList({ config }), {
    json: { certificates: [{ state: 'valid' }, { state: 'valid' }, { state: 'valid' }] },
  })
  t.match((await tlsRevoke({ config, name: 'one', ...once })).json, { revoked: 2 })
  t.match(await tlsList({ config }), {
    json: {
      certificates: [
        { kind: 'server', state: 'valid' },
        { kind: 'client', name: 'one', state: 'revoked' },
        { kind: 'client', name: 'one', state: 'revoked' },
      ],
    },
  })
  t.equal(revoked(), 2)
  writeFileSync(tls.crl, empty)
  t.match((await tlsRevoke({ config, name: 'one', ...once })).json, { revoked: 0 })
  t.equal(revoked(), 2, 'it names both again')
})

t.test('without the key of the authority nothing is called revoked that is not', async t => {
  const { config, dir, tls } = await made(t)
  await issue(config, 'one', path.join(dir, 'one'))
  renameSync(tls.caKey, `${tls.caKey}.away`)
  await t.rejects(tlsRevoke({ config, name: 'one', ...once }), { message: /cannot read .*ca-key/ })
  t.match(await tlsList({ config }), { json: { certificates: [{}, { state: 'valid' }] } })
})

t.test('certificates are revoked also when serve cannot be asked to end what is open', async t => {
  const { config, dir } = await made(t)
  for (const name of ['one', 'two']) await issue(config, name, path.join(dir, name))
  t.match(await tlsRevoke({ config, name: 'one', ...once }), {
    json: { revoked: 1, ended: undefined },
    text: /1 certificate\(s\) revoked\n {2}clone-server serve does not run/,
  })
  writeFileSync(config, '{ runDir: 7 }')
  await t.rejects(tlsRevoke({ config, name: 'two', ...once }), {
    code: 'USAGE',
    message: /^the certificates of two are revoked, but what it has open may go on: .*runDir/,
  })
  t.match(await tlsList({ config }), {
    json: { certificates: [{}, { state: 'revoked' }, { name: 'two', state: 'revoked' }] },
  })
})

t.test('revoke takes certificates of the client too, where they are of this source', async t => {
  const { config, dir, tls } = await made(t)
  const paths = { clients: path.join(dir, 'clients'), serveSocket: path.join(dir, 'serve.sock') }
  for (const [at, name] of ['one', 'one', 'two'].entries())
    await issue(config, name, path.join(dir, String(at)))
  const take = (name: string) => revoke(paths, tls, name, path.join(dir, 'authorized_keys'))
  const done = await take('one')
  t.match(done, { rights: false, certificates: 2, keys: 0, ended: undefined })
  t.match(renderRevoked(done), /\n {2}2 certificate\(s\) revoked\n/)
  t.equal(new X509Crl(readFileSync(tls.crl)).entries.length, 2)
  await t.rejects(take('one'), { code: 'USAGE', message: /there is no client one/ })
  renameSync(tls.caKey, `${tls.caKey}.away`)
  await t.rejects(take('two'), {
    code: 'USAGE',
    message: /^client two has no rights any more, but: cannot read .*ca-key/,
  })
})

t.test('two commands do not change the folder at once', async t => {
  const { config, dir, tls } = await made(t)
  const free = tryLock(path.join(tls.folder, 'lock'), 'a test')
  await t.rejects(issue(config, 'one', path.join(dir, 'one')), {
    code: 'LOCKED',
    message: /a test/,
  })
  t.notOk(readdirSync(dir).includes('one'))
  if (typeof free === 'function') free()
  await issue(config, 'one', path.join(dir, 'one'))
})
