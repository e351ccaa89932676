// The parts of TLS that need no connection: the commands about certificates, and the options before TLS as bytes.

import 'reflect-metadata'
import { execFileSync } from 'node:child_process'
import { X509Certificate } from 'node:crypto'
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { PassThrough } from 'node:stream'
import { X509Crl } from '@peculiar/x509'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { tlsInit, tlsIssue, tlsList, tlsRenew, tlsRevoke } from '../server/commands/tls.ts'
import { lookAtTls } from '../server/doctor/tls.ts'
import { tlsFolder, type TlsFolder } from '../server/tls/paths.ts'
import { drive } from '../server/tls/drive.ts'
import { untilGone, untilStartTls } from '../server/tls/options.ts'
import { whyNotBelieved } from '../shared/certificate-faults.ts'
import { tryLock } from '../shared/host/lock.ts'
import type { Decoder } from '../shared/nbd/decode.ts'
import { requires } from './nbd/requires.ts'
import { ack, bytes, greeting, optionReply, refusal, text } from './nbd/wire.ts'

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
  t.strictSame(readdirSync(dir), [], 'a dry run makes nothing')
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
  t.strictSame(readdirSync(dir), ['tls'], 'and leaves nothing beside')
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

t.test('doctor says whether the certificates are there, fit, and last', async t => {
  const { tls } = await made(t)
  const files = { ca: tls.caCert, cert: tls.serverCert, key: tls.serverKey, crl: tls.crl }
  const day = 86_400_000
  t.strictSame(await lookAtTls(undefined, Date.now()), [])
  t.match(await lookAtTls(files, Date.now() - 30 * day), [{ verdict: 'pass' }])
  t.match(await lookAtTls(files, Date.now()), [{ verdict: 'warn', remedy: /tls renew/ }])
  t.match(await lookAtTls(files, Date.now() + 11 * day), [{ verdict: 'fail', code: 'USAGE' }])
  t.match(await lookAtTls({ ...files, key: tls.caKey }, Date.now()), [
    { verdict: 'fail', found: /cannot be used: .*key values mismatch/ },
  ])
  t.match(await lookAtTls({ ...files, crl: `${tls.crl}.none` }, Date.now()), [
    { verdict: 'fail', found: /cannot read .*none: no such file/, remedy: /tls init/ },
  ])
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

/** Runs a decoder over bytes that come in pieces. @returns what it said, and how it ended */
async function hear(
  decoder: (send: (bytes: Buffer) => void) => Decoder<unknown>,
  pieces: readonly Buffer[],
): Promise<{ said: Buffer; end: unknown }> {
  const said: Buffer[] = []
  const stream = new PassThrough()
  const end = drive(
    stream,
    decoder(bytes => said.push(bytes)),
    'the client',
  ).then(
    value => value,
    (error: unknown) => (error as Error).message,
  )
  for (const piece of pieces) {
    stream.write(piece)
    await new Promise(resolve => setImmediate(resolve))
  }
  stream.end()
  return { end: await end, said: Buffer.concat(said) }
}

const option = (number: number, data: Buffer = Buffer.alloc(0)): Buffer =>
  bytes(text('IHAVEOPT'), number, data.length, data)
const TLS_REQD = 5
const WHY = 'this server speaks NBD only over TLS'

t.test('before TLS every option but two is answered that it is required', async t => {
  const asked = [3, 6, 7, 8, 9, 10, 4711]
  const said = bytes(3, ...asked.map(one => option(one, Buffer.alloc(one % 7))))
  const answers = bytes(greeting(), ...asked.map(one => refusal(one, TLS_REQD, WHY)))
  for (const [last, answer, end] of [
    [option(5), ack(5), 3],
    [option(2), ack(2), 'the client does not ask for TLS'],
    [option(1, text('web/vda')), Buffer.alloc(0), 'the client does not ask for TLS'],
    [
      bytes(option(5, text('x')), option(2)),
      bytes(optionReply(5, 2 ** 31 + 3), ack(2)),
      'the client does not ask for TLS',
    ],
  ] as const) {
    const heard = await hear(untilStartTls, [bytes(said, last)])
    t.equal(heard.end, end)
    t.ok(heard.said.equals(bytes(answers, answer)), heard.said.toString('hex'))
  }
})

t.test('options come out the same wherever the stream is cut', async t => {
  const wire = bytes(1, option(7, text('any')), option(5))
  for (let cut = 0; cut <= wire.length; cut++) {
    const { said, end } = await hear(untilStartTls, [wire.subarray(0, cut), wire.subarray(cut)])
    t.equal(end, 1, `cut at byte ${cut}`)
    t.equal(said.length, 18 + 20 + WHY.length + 20)
  }
})

t.test('a refused client hears the reason to whatever it asks, until it goes', async t => {
  const { said } = await hear(
    send => untilGone(send, 'it is revoked'),
    [bytes(option(8), option(7, text('web')), option(2))],
  )
  const wanted = bytes(refusal(8, 2, 'it is revoked'), refusal(7, 2, 'it is revoked'), ack(2))
  t.ok(said.equals(wanted))
})

t.test(
  'bytes that come before they can be wanted end it, in the same piece or the next',
  async t => {
    const early = 'the client breaks the NBD protocol: bytes that nobody asked for'
    t.equal((await hear(untilStartTls, [bytes(3, option(5), text('x'))])).end, early)
    t.equal((await hear(untilStartTls, [bytes(3), bytes(option(5), option(3))])).end, early)
  },
)

t.test(
  'whatever a client says, it ends with a reason, and what it is told stays small',
  async () => {
    const anything = fc.uint8Array({ maxLength: 60 }).map(part => Buffer.from(part))
    const anOption = fc
      .tuple(fc.nat({ max: 12 }), fc.uint8Array({ maxLength: 200 }))
      .map(([number, content]) => option(number, Buffer.from(content)))
    const piece = fc.oneof(anything, anOption, anOption)
    await fc.assert(
      fc.asyncProperty(fc.boolean(), fc.array(piece, { maxLength: 80 }), async (greets, pieces) => {
        const { said, end } = await hear(untilStartTls, greets ? [bytes(3), ...pieces] : pieces)
        return (typeof end === 'string' || end === 3 || end === 1) && said.length < 5000
      }),
      { numRuns: 200, seed: 1 },
    )
  },
)

t.test('an unknown reason of OpenSSL is passed on', async t => {
  t.equal(whyNotBelieved('CERT_REVOKED'), 'is revoked')
  t.match(whyNotBelieved('CERT_NOT_YET_VALID'), /clocks/)
  t.equal(whyNotBelieved('NEW_CODE'), 'cannot be verified (NEW_CODE)')
})
