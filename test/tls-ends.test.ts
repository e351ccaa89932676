// Certificates end: who says so, how long before, and what is not made any more when it would end at once.

import 'reflect-metadata'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { pino } from 'pino'
import t, { type Test } from 'tap'
import { tlsOf } from '../client/source/tls.ts'
import { cloneConfig, loadConfig } from '../client/config/effective.ts'
import { tlsInit, tlsIssue, tlsRenew, tlsRevoke } from '../server/commands/tls.ts'
import { lookAtTls } from '../server/doctor/tls.ts'
import { issue, makeAuthority, makeCrl, readAuthority } from '../server/tls/certificates.ts'
import { watchEnds } from '../server/tls/ends.ts'
import { entryOf, openAuthority, record } from '../server/tls/folder.ts'
import { tlsFolder, type TlsFolder } from '../server/tls/paths.ts'
import { endOfLists, isRevoked } from '../server/tls/revocations.ts'

const once = { 'dry-run': false } as const
const DAY = 86_400_000

async function made(t: Test, days: number) {
  const dir = mkdtempSync(path.join(tmpdir(), 'nbd-clone-test-'))
  t.teardown(() => rmSync(dir, { recursive: true, force: true }))
  const config = path.join(dir, 'source.yaml')
  writeFileSync(config, `{ runDir: ${dir}/run, stateDir: ${dir}/state }\n`)
  const tls = tlsFolder(config)
  await tlsInit({ config, host: 'alpha.example', days, ...once })
  const files = { ca: tls.caCert, cert: tls.serverCert, key: tls.serverKey, crl: tls.crl }
  return { dir, config, tls, files }
}

/** Puts an authority in place that has been over for half a day. */
async function endAuthority(tls: TlsFolder): Promise<void> {
  const over = await makeAuthority('over', -0.5)
  writeFileSync(tls.caCert, over.cert)
  writeFileSync(tls.caKey, over.key)
}

const verdicts = (outcomes: readonly { verdict: string }[]): string =>
  outcomes.map(({ verdict }) => verdict).join(' ')

t.test('doctor says whether the certificates are there, fit, and last', async t => {
  const { tls, files } = await made(t, 10)
  const look = (at: number, changes: object = {}) => lookAtTls({ ...files, ...changes }, tls, at)
  t.strictSame(await lookAtTls(undefined, tls, Date.now()), [])
  t.equal(verdicts(await look(Date.now() - 30 * DAY)), 'pass pass pass')
  t.match(await look(Date.now()), [
    { verdict: 'warn', found: /server-cert\.pem, valid until/, remedy: /tls renew/ },
    { verdict: 'warn', found: /ca-cert\.pem, valid until/, remedy: /make a new one: .*tls init/ },
    { verdict: 'warn', found: /ca-crl\.pem, valid until/ },
  ])
  t.match(await look(Date.now() + 11 * DAY), [
    { verdict: 'fail', code: 'USAGE', found: /over since .*: no client takes it any more/ },
    { verdict: 'fail', code: 'USAGE', found: /over since .*: nobody believes it any more/ },
    { verdict: 'fail', code: 'USAGE', found: /over since .*: nobody is let in any more/ },
  ])
  t.match(await look(Date.now(), { key: tls.caKey }), [
    { verdict: 'fail', found: /cannot be used: .*key values mismatch/ },
  ])
  t.match(await look(Date.now(), { crl: `${tls.crl}.none` }), [
    { verdict: 'fail', found: /cannot read .*none: no such file/, remedy: /tls init/ },
  ])
})

t.test('doctor sees a list of revoked certificates that has ended before all else', async t => {
  const { dir, tls, files } = await made(t, 400)
  const crl = path.join(dir, 'crl.pem')
  writeFileSync(crl, await makeCrl(await readAuthority(await makeAuthority('other', -0.5)), []))
  t.match(await lookAtTls({ ...files, crl }, tls, Date.now()), [
    { verdict: 'pass' },
    { verdict: 'pass' },
    { verdict: 'fail', found: /crl\.pem, over since .*: nobody is let in any more/ },
  ])
  t.equal(verdicts(await lookAtTls({ ...files, crl: undefined }, tls, Date.now())), 'pass pass')
})

t.test(
  'doctor counts of each client the certificate that ends last, if it is not revoked',
  async t => {
    const { config, tls, files } = await made(t, 400)
    const authority = await openAuthority(tls)
    const give = async (name: string, days: number): Promise<void> => {
      const subject = { kind: 'client', name } as const
      await record(tls, entryOf(await issue(authority, subject, days), subject))
    }
    const clients = async () => (await lookAtTls(files, tls, Date.now())).slice(3)
    t.strictSame(await clients(), [])
    await give('long', 300)
    await give('renewed', -0.5)
    await give('renewed', 300)
    t.match(await clients(), [{ verdict: 'pass', found: /^certificates of 2 client/ }])
    await give('soon', 10)
    await give('over', -0.5)
    await give('gone', -0.5)
    await tlsRevoke({ config, name: 'gone', ...once })
    t.match(await clients(), [
      {
        verdict: 'warn',
        found: /^certificate of client soon, valid until/,
        remedy: /^clone-server tls issue soon, .* clone-server revoke soon$/,
      },
      { verdict: 'fail', found: /^certificate of client over, over since .*: it is not let in/ },
    ])
    t.equal((await clients()).length, 2)
    const others = await lookAtTls({ ...files, ca: files.cert }, tls, Date.now())
    t.equal(others.length, 3, 'those of another authority are not known here')
  },
)

t.test('a certificate is never made by an authority that is over', async t => {
  const { config, dir, tls } = await made(t, 10)
  await endAuthority(tls)
  const before = readFileSync(tls.serverCert, 'utf8')
  const over = { code: 'USAGE', message: /ca-cert\.pem is over since .*/, remedy: /tls init/ }
  for (const dry of [true, false]) {
    const args = { config, days: 10, 'dry-run': dry }
    await t.rejects(tlsRenew({ ...args, host: 'alpha' }), over)
    await t.rejects(tlsIssue({ ...args, name: 'one', out: path.join(dir, 'one') }), over)
  }
  t.equal(readFileSync(tls.serverCert, 'utf8'), before)
})

t.test(
  'a certificate that ends with its authority, and not when it was asked for, says so',
  async t => {
    const { config, dir, tls } = await made(t, 10)
    const end = (await openAuthority(tls)).certificate.notAfter.toISOString().slice(0, 10)
    const issueFor = (days: number, dry: boolean) => {
      const out = path.join(dir, `one-${days}`)
      return tlsIssue({ config, name: 'one', out, days, 'dry-run': dry })
    }
    for (const dry of [true, false]) {
      const capped = {
        json: { validUntil: end },
        text: new RegExp(`valid until ${end} only, when`),
      }
      t.match(await issueFor(1000, dry), capped)
      t.match(await tlsRenew({ config, host: 'alpha', days: 1000, 'dry-run': dry }), capped)
      t.notMatch((await issueFor(3, dry)).text, /valid until/)
    }
  },
)

t.test('serve warns of what ends within a month, when it starts', async t => {
  const { dir, files, tls } = await made(t, 10)
  const said = async (crl: string = tls.crl): Promise<string[]> => {
    const lines: string[] = []
    const write = (line: string): void => void lines.push(line)
    const stop = await watchEnds({ ...files, crl }, pino({ level: 'warn' }, { write }))
    stop()
    return lines
  }
  const soon = await said()
  t.equal(soon.length, 2)
  t.match(soon[0], /server-cert\.pem.*ends soon/)
  t.match(soon[1], /ca-cert\.pem.*ends soon/)
  const list = path.join(dir, 'list.pem')
  for (const [days, words] of [
    [5, /list\.pem.*the list of revoked certificates of listen\.tls ends soon/],
    [-0.5, /list\.pem.*the list of revoked certificates of listen\.tls has expired/],
  ] as const) {
    writeFileSync(list, await makeCrl(await readAuthority(await makeAuthority('other', days)), []))
    t.match((await said(list))[2], words)
  }
  await endAuthority(tls)
  t.match((await said())[1], /ca-cert\.pem.*has expired/)
})

t.test(
  'a standby is warned once of each certificate of its own that ends within a month',
  async t => {
    const { config, dir } = await made(t, 400)
    const warned: string[] = []
    const connect = async (folder: string): Promise<void> => {
      const file = path.join(dir, 'standby.yaml')
      const tls = ['ca: ca-cert', 'cert: client-cert', 'key: client-key']
        .map(one => one.replace(': ', `: ${folder}/`))
        .map(one => `${one}.pem`)
        .join(', ')
      writeFileSync(
        file,
        `sources: { a: { transport: tls, host: alpha, tls: { ${tls} } } }\ndomains: { web: { source: a } }\n`,
      )
      const { source } = cloneConfig(loadConfig(file), 'web')
      const found = await tlsOf(source, (_, message) => warned.push(message))
      t.ok(found?.cert)
    }
    for (const [name, days] of [
      ['long', 300],
      ['soon', 29],
    ] as const) {
      const out = path.join(dir, name)
      await tlsIssue({ config, name, out, days, ...once })
      for (let tries = 0; tries < 3; tries++) await connect(out)
    }
    t.equal(warned.length, 1)
    t.match(warned[0], /^the certificate of this standby ends on \d{4}-\d\d-\d\d; on the source: /)
    writeFileSync(path.join(dir, 'long/client-cert.pem'), 'no certificate')
    await connect(path.join(dir, 'long'))
    t.equal(warned.length, 1, 'what is none is for TLS itself to refuse')
  },
)

t.test('a list says when it ends, and whom it has', async t => {
  const { config, dir, tls } = await made(t, 10)
  const raw = (name: string): Buffer => {
    const pem = readFileSync(path.join(dir, name, 'client-cert.pem'), 'utf8')
    return Buffer.from(pem.replace(/-----.*-----/g, ''), 'base64')
  }
  for (const name of ['one', 'two'])
    await tlsIssue({ config, name, out: path.join(dir, name), days: 5, ...once })
  await tlsRevoke({ config, name: 'one', ...once })
  const list = readFileSync(tls.crl, 'utf8')
  t.strictSame(endOfLists(list), (await openAuthority(tls)).certificate.notAfter)
  t.equal(isRevoked(list, raw('one')), true)
  t.equal(isRevoked(list, raw('two')), false)
  const other = await readAuthority(await makeAuthority('other', 5))
  t.equal(isRevoked((await makeCrl(other, [])) + list, raw('one')), true, 'one of several lists')
})
