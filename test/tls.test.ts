// The TLS listener with real TLS on loopback, a real nbd-server behind it, and real clients: ours and libnbd's.

import { execFile } from 'node:child_process'
import { EventEmitter, once } from 'node:events'
import { readFileSync, renameSync, writeFileSync } from 'node:fs'
import { connect, createServer, type AddressInfo } from 'node:net'
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { promisify } from 'node:util'
import t from 'tap'
import { cloneConfig, loadConfig, type CloneConfig } from '../client/config/effective.ts'
import { openTransport } from '../client/source/transport.ts'
import { connectDisk } from '../client/source/nbd.ts'
import { replaceServer } from '../server/tls/folder.ts'
import { connectNbd, type NbdConnection, type NbdTls } from '../shared/nbd/client.ts'
import { requires } from './nbd/requires.ts'
import { pattern } from './nbd/wire.ts'
import { tlsSource, type TlsSource } from './tls/source.ts'
import { TOKEN } from './tls/token.ts'

const run = promisify(execFile)
const MIB = 2 ** 20
const WEB = pattern(5 * MIB + 512, 1)
const DB = pattern(2 * MIB, 2)

const pem = (...file: string[]): string => readFileSync(path.join(...file), 'utf8')
const tlsOf = (folder: string): NbdTls & { ca: string } => ({
  ca: pem(folder, 'ca-cert.pem'),
  cert: pem(folder, 'client-cert.pem'),
  key: pem(folder, 'client-key.pem'),
})

const open = ({ port }: TlsSource, tls: NbdTls, exportName = 'web/vda'): Promise<NbdConnection> =>
  connectNbd({ host: 'localhost', port }, { exportName, tls })

async function readAll(nbd: NbdConnection): Promise<Buffer> {
  const all = new Uint8Array(nbd.size)
  const reads: Promise<void>[] = []
  for (let at = 0; at < nbd.size; at += 300_000)
    reads.push(nbd.read(at, all.subarray(at, Math.min(at + 300_000, nbd.size))))
  await Promise.all(reads)
  return Buffer.from(all)
}

/** Whether a client gets the first bytes of an export. */
async function isServed(source: TlsSource, tls: NbdTls): Promise<boolean> {
  const nbd = await open(source, tls)
  const first = new Uint8Array(4096)
  await nbd.read(0, first)
  nbd.destroy()
  return WEB.subarray(0, 4096).equals(first)
}

const rejection = (promise: Promise<unknown>): Promise<unknown> =>
  promise.then(
    () => 'it resolved',
    (error: unknown) => error,
  )

t.test('the TLS listener', { skip: requires('nbd-server', 'setpriv') }, async t => {
  const source = await tlsSource(t, { web: WEB, db: DB })
  const standby1 = await source.issue('standby1')
  const trusted = tlsOf(standby1)
  source.authorize('standby1', ['web'])

  t.test('every byte comes over, and the log has the name of who is let in', async t => {
    const nbd = await open(source, trusted)
    t.match(nbd, { size: WEB.length, readOnly: true })
    t.ok(WEB.equals(await readAll(nbd)))
    await nbd.disconnect()
    t.equal(await nbd.closed, undefined, "the end is nbd-server's")
    await source.logged({ msg: 'TLS client admitted', client: 'standby1' })
  })

  t.test('libnbd gets the same bytes', { skip: requires('nbdcopy', 'nbdinfo') }, async t => {
    const out = path.join(source.dir, 'copied.raw')
    const uri = `nbds://localhost:${source.port}/web/vda?tls-certificates=${standby1}`
    await run('nbdcopy', ['--connections=1', uri, out])
    t.ok(WEB.equals(readFileSync(out)))
    const { stdout } = await run('nbdinfo', ['--size', uri])
    t.equal(Number(stdout), WEB.length)
  })

  t.test('a standby with transport tls connects with its token', async t => {
    const config = path.join(source.dir, 'standby.yaml')
    const files = (key: string): string =>
      `{ ca: ${standby1}/ca-cert.pem, cert: ${standby1}/client-cert.pem, key: ${key} }`
    const configured = (key: string, more = '') => {
      writeFileSync(
        config,
        `sources: { a: { transport: tls, host: localhost, port: ${source.port}, tls: ${files(key)}${more} } }\ndomains: { web: { source: a } }\n`,
      )
      return cloneConfig(loadConfig(config), 'web')
    }
    const never = new AbortController().signal
    const connected = (clone: CloneConfig) =>
      connectDisk(openTransport(clone.source), clone, 'vda', TOKEN, never)
    const key = `${standby1}/client-key.pem`
    t.equal(configured(key).source.gate, 'ssh')
    const nbd = await connected(configured(key))
    t.ok(WEB.equals(await readAll(nbd)))
    nbd.destroy()
    const bare = path.join(source.dir, 'bare.pem')
    writeFileSync(bare, pem(key), { mode: 0o640 })
    t.match(await rejection(connected(configured(bare))), {
      code: 'USAGE',
      message: `tls.key: ${bare} may be read by others (mode 0640)`,
      remedy: `chmod 600 ${bare}`,
    })
    t.match(await rejection(connected(configured(`${bare}.none`))), {
      code: 'USAGE',
      message: `tls.key: cannot read ${bare}.none: no such file`,
    })
  })

  t.test('a client sees and gets only its own domains, and its own sessions', async t => {
    const other = tlsOf(await source.issue('standby2'))
    source.authorize('standby2', ['db'])
    const nbd = await open(source, other, 'db/vda')
    t.ok(DB.equals(await readAll(nbd)))
    nbd.destroy()
    for (const [tls, name] of [
      [trusted, 'db/vda'],
      [other, 'web/vda'],
      [other, '../web/vda'],
      [other, `db/vda@${TOKEN}`],
    ] as const)
      t.match(await rejection(open(source, tls, name)), {
        code: 'SOURCE_REFUSED',
        reply: /^NBD_REP_ERR_(UNKNOWN|POLICY)$/,
      })
  })

  t.test('a client without rights is told so, and logged', async t => {
    t.match(await rejection(open(source, tlsOf(await source.issue('stranger')))), {
      code: 'SOURCE_REFUSED',
      message: /client stranger is not authorized here/,
    })
    await source.logged({
      client: 'stranger',
      peer: '127.0.0.1',
      reason: 'client stranger is not authorized here',
    })
  })

  t.test('a client with rights to nothing that is there is told so', async t => {
    const idle = tlsOf(await source.issue('idle'))
    source.authorize('idle', ['mail'])
    t.match(await rejection(open(source, idle)), {
      code: 'SOURCE_REFUSED',
      message: /nothing that it may have is exported/,
    })
  })

  t.test('a revoked client is told so from its next connection on', async t => {
    const gone = [tlsOf(await source.issue('gone')), tlsOf(await source.issue('gone'))] as const
    source.authorize('gone', ['web'])
    t.match(source.cloneServer('tls', 'revoke', 'gone', '--dry-run').out, /would revoke 2/)
    t.ok(await isServed(source, gone[0]), 'not by a dry run')
    t.match(source.cloneServer('tls', 'revoke', 'gone'), { status: 0, out: /2 certificate/ })
    for (const tls of gone)
      t.match(await rejection(open(source, tls)), {
        code: 'SOURCE_REFUSED',
        message: /the certificate of gone is revoked/,
      })
    await source.logged({ msg: 'TLS client refused', client: 'gone', reasonLike: /is revoked/ })
    t.ok(await isServed(source, tlsOf(await source.issue('gone'))), 'a new one is good')
  })

  t.test('what a client has open when it is revoked ends at once', async t => {
    source.authorize('leaving', ['web'])
    for (const command of [
      ['tls', 'revoke', 'leaving'],
      ['revoke', 'leaving', '--file', path.join(source.dir, 'authorized_keys')],
    ]) {
      const nbd = await open(source, tlsOf(await source.issue('leaving')))
      const other = await open(source, trusted)
      await nbd.read(0, new Uint8Array(4096))
      const { status, out } = source.cloneServer(...command)
      t.equal(status, 0)
      t.match(out, /\b1 certificate\(s\) revoked\n {2}0 lease\(s\) and [12] connection\(s\) ended/)
      t.match(await rejection(nbd.read(0, new Uint8Array(4096))), { fault: 'LOST' })
      await other.read(0, new Uint8Array(4096))
      other.destroy()
    }
  })

  t.test('a client that is revoked in the middle of its handshake is not let in', async t => {
    source.authorize('slow', ['web'])
    const tls = tlsOf(await source.issue('slow'))
    // Greeted, the listener has read its files: what the client says waits here until it is revoked.
    const steps = new EventEmitter()
    const greeted = once(steps, 'greeted')
    const between = createServer(client => {
      const upstream = connect(source.port, '127.0.0.1')
      for (const socket of [client, upstream]) socket.on('error', () => undefined)
      upstream.once('data', () => steps.emit('greeted'))
      upstream.pipe(client)
      steps.once('revoked', () => client.pipe(upstream))
    }).listen(0, '127.0.0.1')
    t.teardown(() => between.close())
    await once(between, 'listening')
    const { port } = between.address() as AddressInfo
    const opening = rejection(open({ ...source, port }, tls))
    await greeted
    t.equal(source.cloneServer('tls', 'revoke', 'slow').status, 0)
    steps.emit('revoked')
    t.match(await opening, {
      code: 'SOURCE_REFUSED',
      message: /the certificate of slow is revoked/,
    })
    await source.logged({ msg: 'TLS client refused', client: 'slow', reasonLike: /is revoked/ })
  })

  t.test('a certificate that proves nothing gives nothing', async t => {
    const { ca, cert, key } = trusted
    const foreign = await tlsSource(t, { web: WEB })
    const client = (name: string) => ({ kind: 'client' as const, name })
    source.authorize('late', ['web'])
    const table: [what: string, tls: NbdTls, reason: RegExp, client?: string][] = [
      ['none', { ca }, /the client shows no certificate/],
      [
        'of another authority',
        { ...tlsOf(await foreign.issue('standby1')), ca },
        /certificate of standby1 is of another authority/,
        'standby1',
      ],
      [
        'expired',
        await source.forge(client('late'), -0.5),
        /certificate of late has expired/,
        'late',
      ],
      [
        'for a server',
        { ca, cert: pem(source.tls.serverCert), key: pem(source.tls.serverKey) },
        /is not one for this end of a connection/,
        'localhost',
      ],
      ['named local', await source.forge(client('local'), 1), /a name that no client may have/],
      ['with no name', await source.forge(client('../web'), 1), /is no client's/],
    ]
    for (const [what, tls, reason, name] of table) {
      t.match(await rejection(open(source, tls)), { code: 'SOURCE_REFUSED', message: reason }, what)
      const line = await source.logged({ msg: 'TLS client refused', reasonLike: reason })
      if (name !== undefined) t.equal(line.client, name, what)
    }
    t.match(
      await rejection(open(foreign, { ca, ...(cert && { cert }), ...(key && { key }) })),
      {
        code: 'UNSAFE',
        fault: 'UNTRUSTED',
        message: /server's certificate is of another authority/,
      },
      'nor does a client take a server of another authority',
    )
  })

  t.test('a server whose certificate is not good is not taken, until it is renewed', async t => {
    t.match(await rejection(open(source, { ...trusted, servername: 'alpha.example.net' })), {
      code: 'UNSAFE',
      message: /certificate is for other names: .*alpha\.example\.net/,
    })
    const subject = { kind: 'server' as const, hosts: ['localhost'] }
    const { cert = '', key = '' } = await source.forge(subject, -0.5)
    await replaceServer(source.tls, { cert, key })
    t.match(await rejection(open(source, trusted)), {
      code: 'UNSAFE',
      fault: 'UNTRUSTED',
      message: /server's certificate has expired/,
    })
    t.match(source.cloneServer('tls', 'renew', '--host', 'localhost'), { status: 0 })
    t.ok(await isServed(source, trusted), 'without a restart')
  })

  t.test('clients that are gone leave no process', async t => {
    const nbd = await open(source, trusted)
    t.ok((await source.counts()).running > 0)
    const reading = nbd.read(0, new Uint8Array(4 * MIB))
    nbd.destroy()
    await rejection(reading)
    while ((await source.counts()).running > 0) await delay(20)
    t.strictSame(await source.counts(), { running: 0, unknown: 0, waiting: 0 })
  })

  t.test('without its list of revoked certificates, nobody is let in', async t => {
    renameSync(source.tls.crl, `${source.tls.crl}.away`)
    t.match(await rejection(open(source, trusted)), { code: 'TRANSFER', fault: 'LOST' })
    await source.logged({ msg: 'TLS client refused', reasonLike: /cannot read .*ca-crl\.pem/ })
  })
})
