// The client against the servers people run: nbdkit, qemu-nbd and nbd-server.

import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { createConnection } from 'node:net'
import { join } from 'node:path'
import { Duplex } from 'node:stream'
import t from 'tap'
import {
  connectNbd,
  describeExport,
  listExports,
  openNbd,
  type NbdAddress,
  type NbdConnection,
} from '../shared/nbd/client.ts'
import { temporary } from './nbd/fake-server.ts'
import { nbdkit, nbdServer, qemuNbd } from './nbd/real-servers.ts'
import { requires } from './nbd/requires.ts'
import { pattern } from './nbd/wire.ts'

const MIB = 2 ** 20
const ALLOCATION = 'base:allocation'

/** 4 MiB and an odd tail: data, a hole of 2 MiB, data. */
function image(
  t: Parameters<typeof temporary>[0],
  size = 4 * MIB + 512,
): { path: string; bytes: Buffer } {
  const path = join(temporary(t), 'disk.img')
  const bytes = Buffer.alloc(size)
  pattern(MIB, 1).copy(bytes, 0)
  pattern(size - 3 * MIB, 2).copy(bytes, 3 * MIB)
  const file = openSync(path, 'w')
  writeSync(file, bytes, 0, MIB, 0)
  writeSync(file, bytes, 3 * MIB, size - 3 * MIB, 3 * MIB)
  closeSync(file)
  return { path, bytes }
}

/** Reads the whole export, many requests in flight, into shared memory. */
async function readAll(nbd: NbdConnection, chunk = 300_000): Promise<Buffer> {
  const all = new Uint8Array(new SharedArrayBuffer(nbd.size)).fill(0xee)
  const reads: Promise<void>[] = []
  for (let at = 0; at < nbd.size; at += chunk)
    reads.push(nbd.read(at, all.subarray(at, Math.min(at + chunk, nbd.size))))
  await Promise.all(reads)
  return Buffer.from(all)
}

const rejection = (promise: Promise<unknown>): Promise<unknown> =>
  promise.then(
    () => 'it resolved',
    (error: unknown) => error,
  )

t.test('nbdkit', { skip: requires('nbdkit') }, t => {
  t.test('every byte comes over, with structured and with simple replies', async t => {
    const { path: file, bytes } = image(t)
    const { path } = await nbdkit(t, ['-r', 'file', file])
    for (const structuredReplies of [true, false]) {
      const nbd = await connectNbd({ path }, { exportName: '', structuredReplies })
      t.match(nbd, { size: bytes.length, readOnly: true, structured: structuredReplies })
      t.ok(bytes.equals(await readAll(nbd)))
      await nbd.disconnect()
      t.equal(await nbd.closed, undefined)
    }
  })

  t.test('block status tells data from holes, for exactly the range asked', async t => {
    const { path: file } = image(t)
    const { path } = await nbdkit(t, ['file', file])
    const nbd = await connectNbd({ path }, { exportName: '', metaContexts: [ALLOCATION, 'x:none'] })
    t.strictSame([...nbd.metaContexts.keys()], [ALLOCATION])
    t.strictSame(await nbd.blockStatus(0, nbd.size, ALLOCATION), [
      { offset: 0, length: MIB, flags: 0 },
      { offset: MIB, length: 2 * MIB, flags: 3 },
      { offset: 3 * MIB, length: MIB + 512, flags: 0 },
    ])
    t.strictSame(await nbd.blockStatus(MIB - 10, 20, ALLOCATION), [
      { offset: MIB - 10, length: 10, flags: 0 },
      { offset: MIB, length: 10, flags: 3 },
    ])
    await nbd.disconnect()
    t.match(await describeExport({ path }, { exportName: '' }), {
      size: 4 * MIB + 512,
      metaContexts: [ALLOCATION],
    })
  })

  t.test('a stated block size is obeyed: a server that refuses all else is content', async t => {
    const { path: file, bytes } = image(t)
    const policy = [
      'blocksize-minimum=512',
      'blocksize-preferred=4096',
      'blocksize-maximum=64k',
      'blocksize-error-policy=error',
    ]
    const { path } = await nbdkit(t, ['--filter=blocksize-policy', 'file', file, ...policy])
    const nbd = await connectNbd({ path }, { exportName: '' })
    t.strictSame(nbd.blockSize, { minimum: 512, preferred: 4096, maximum: 65536 })
    t.ok(bytes.equals(await readAll(nbd, 100_001)))
    await nbd.disconnect()
  })

  t.test('an error of the server fails that read, and the next one works', async t => {
    const trigger = join(temporary(t), 'broken')
    const { path } = await nbdkit(t, [
      '--filter=error',
      'memory',
      '1M',
      'error-pread=EIO',
      'error-pread-rate=100%',
      `error-pread-file=${trigger}`,
    ])
    for (const structuredReplies of [true, false]) {
      writeFileSync(trigger, '')
      const nbd = await connectNbd({ path }, { exportName: '', structuredReplies })
      t.match(await rejection(nbd.read(0, new Uint8Array(512))), {
        fault: 'REQUEST_FAILED',
        errno: 'NBD_EIO',
      })
      execFileSync('rm', [trigger])
      await nbd.read(0, new Uint8Array(512))
      await nbd.disconnect()
    }
  })

  t.test('replies out of order, from many threads, find their requests', async t => {
    const { path } = await nbdkit(t, [
      '-t',
      '8',
      '--filter=delay',
      'pattern',
      '8M',
      'delay-read=1ms',
    ])
    const nbd = await connectNbd({ path }, { exportName: '' })
    const all = await readAll(nbd, 65536)
    t.ok(
      Array.from({ length: MIB }, (_, i) => 8 * i).every(
        at => all.readBigUInt64BE(at) === BigInt(at),
      ),
    )
    await nbd.disconnect()
  })

  t.test('a server killed in the middle rejects every read', async t => {
    const { path, pid } = await nbdkit(t, ['--filter=delay', 'memory', '1M', 'delay-read=10'])
    const nbd = await connectNbd({ path }, { exportName: '' })
    const reads = [0, 512].map(at => rejection(nbd.read(at, new Uint8Array(512))))
    setTimeout(() => process.kill(pid, 'SIGKILL'), 20)
    for (const error of await Promise.all(reads)) t.match(error, { fault: 'LOST' })
  })

  t.test('exports are listed', async t => {
    const folder = temporary(t)
    writeFileSync(join(folder, 'one'), 'x')
    writeFileSync(join(folder, 'two'), 'y')
    const { path } = await nbdkit(t, ['file', `dir=${folder}`])
    t.strictSame((await listExports({ path }, {})).sort(), ['one', 'two'])
  })

  t.test('over the standard streams of a child', async t => {
    const child = spawn('nbdkit', ['-s', 'pattern', '1M'], { stdio: ['pipe', 'pipe', 'inherit'] })
    t.teardown(() => child.kill('SIGKILL'))
    const nbd = await openNbd(Duplex.from({ readable: child.stdout, writable: child.stdin }), {
      exportName: '',
    })
    const into = new Uint8Array(8)
    await nbd.read(4096, into)
    t.equal(Buffer.from(into).readBigUInt64BE(), 4096n)
    nbd.destroy()
    await once(child, 'exit')
  })
  t.end()
})

/** A CA, a server certificate for localhost and one for another name, and a client certificate. */
function certificates(folder: string): void {
  const openssl = (...args: string[]): void =>
    void execFileSync('openssl', args, { cwd: folder, stdio: 'ignore' })
  const authority = (name: string): void =>
    openssl(
      'req',
      '-x509',
      '-newkey',
      'ec',
      '-pkeyopt',
      'ec_paramgen_curve:P-256',
      '-nodes',
      '-days',
      '2',
      '-subj',
      `/CN=${name}`,
      '-keyout',
      `${name}-key.pem`,
      '-out',
      `${name}-cert.pem`,
    )
  const leaf = (name: string, host: string): void => {
    writeFileSync(join(folder, `${name}.ext`), `subjectAltName = DNS:${host}\n`)
    openssl(
      'req',
      '-newkey',
      'ec',
      '-pkeyopt',
      'ec_paramgen_curve:P-256',
      '-nodes',
      '-subj',
      `/CN=${host}`,
      '-keyout',
      `${name}-key.pem`,
      '-out',
      `${name}.csr`,
    )
    openssl(
      'x509',
      '-req',
      '-in',
      `${name}.csr`,
      '-CA',
      'ca-cert.pem',
      '-CAkey',
      'ca-key.pem',
      '-CAcreateserial',
      '-days',
      '2',
      '-extfile',
      `${name}.ext`,
      '-out',
      `${name}-cert.pem`,
    )
  }
  authority('ca')
  authority('other')
  leaf('server', 'localhost')
  leaf('client', 'standby')
}

t.test('TLS', { skip: requires('nbdkit', 'openssl') }, t => {
  const folder = temporary(t)
  mkdirSync(folder, { recursive: true })
  certificates(folder)
  const pem = (name: string): string => readFileSync(join(folder, `${name}.pem`), 'utf8')
  const plain = { exportName: '' }
  const ca = pem('ca-cert')

  t.test('every byte comes over TLS; without it the server refuses', async t => {
    const { path } = await nbdkit(t, [
      '--tls=require',
      `--tls-certificates=${folder}`,
      'pattern',
      '1M',
    ])
    const nbd = await connectNbd(
      { path },
      { ...plain, metaContexts: [ALLOCATION], tls: { ca, servername: 'localhost' } },
    )
    t.strictSame(
      [nbd.structured, nbd.metaContexts.size],
      [true, 1],
      'options are asked again inside TLS',
    )
    t.equal((await readAll(nbd)).readBigUInt64BE(MIB - 8), BigInt(MIB - 8))
    await nbd.disconnect()
    t.equal(await nbd.closed, undefined)
    t.match(await rejection(connectNbd({ path }, plain)), {
      reply: 'NBD_REP_ERR_TLS_REQD',
      code: 'SOURCE_REFUSED',
    })
  })

  t.test('a certificate of another authority, or for another name, is refused', async t => {
    const { path } = await nbdkit(t, [
      '--tls=require',
      `--tls-certificates=${folder}`,
      'null',
      '1M',
    ])
    for (const tls of [
      { ca: pem('other-cert'), servername: 'localhost' },
      { ca, servername: 'source.example.org' },
      { servername: 'localhost' },
    ])
      t.match(await rejection(connectNbd({ path }, { ...plain, tls })), {
        fault: 'UNTRUSTED',
        code: 'UNSAFE',
      })
  })

  t.test('a client certificate is sent when the server wants one', async t => {
    const { path } = await nbdkit(t, [
      '--tls=require',
      '--tls-verify-peer',
      `--tls-certificates=${folder}`,
      'null',
      '1M',
    ])
    const tls = { ca, servername: 'localhost' }
    const error = await rejection(connectNbd({ path }, { ...plain, tls }))
    t.match(error, { fault: /^(TLS|LOST)$/ })
    const nbd = await connectNbd(
      { path },
      { ...plain, tls: { ...tls, cert: pem('client-cert'), key: pem('client-key') } },
    )
    await nbd.read(0, new Uint8Array(512))
    await nbd.disconnect()
  })

  t.test('a server without TLS is not used', async t => {
    const { path } = await nbdkit(t, ['null', '1M'])
    const error = await rejection(
      connectNbd({ path }, { ...plain, tls: { ca, servername: 'localhost' } }),
    )
    t.match(error, { fault: 'OPTION_REFUSED', message: /TLS refused/ })
  })
  t.end()
})

t.test('qemu-nbd: bytes, allocation and exports', { skip: requires('qemu-nbd') }, async t => {
  const { path: file, bytes } = image(t)
  const { path } = await qemuNbd(t, file)
  const nbd = await connectNbd({ path }, { exportName: 'disk', metaContexts: [ALLOCATION] })
  t.equal(nbd.size, bytes.length)
  t.ok(bytes.equals(await readAll(nbd)), 'structured replies, with holes')
  const extents = await nbd.blockStatus(0, nbd.size, ALLOCATION)
  t.strictSame(
    extents.map(({ offset, length, flags }) => [offset, length, flags & 2]),
    [
      [0, MIB, 0],
      [MIB, 2 * MIB, 2],
      [3 * MIB, MIB + 512, 0],
    ],
  )
  await nbd.disconnect()
  t.strictSame(await listExports({ path }, {}), ['disk'])
  t.match(await rejection(connectNbd({ path }, { exportName: 'none' })), {
    reply: 'NBD_REP_ERR_UNKNOWN',
  })
})

t.test('nbd-server', { skip: requires('nbd-server') }, t => {
  t.test('every byte comes over, with simple replies; no block status', async t => {
    const { path: file, bytes } = image(t, 4 * MIB + 77)
    const { path } = await nbdServer(t, file)
    const nbd = await connectNbd({ path }, { exportName: 'disk', metaContexts: [ALLOCATION] })
    t.match(nbd, { size: bytes.length, readOnly: true, metaContexts: new Map() })
    t.ok(bytes.equals(await readAll(nbd)))
    await nbd.disconnect()
    t.strictSame(await listExports({ path }, {}), ['disk'])
    const unknown: NbdAddress = { path }
    t.match(await rejection(connectNbd(unknown, { exportName: 'none' })), {
      reply: 'NBD_REP_ERR_UNKNOWN',
    })
  })

  t.test('GO waits for prerun, disconnect for the end of postrun', async t => {
    const { path: file } = image(t)
    const mark = join(temporary(t), 'postrun-ended')
    const { path } = await nbdServer(t, file, {
      prerun: 'sleep 0.2',
      postrun: `sleep 0.2; touch ${mark}`,
    })
    const began = performance.now()
    const nbd = await connectNbd({ path }, { exportName: 'disk' })
    t.ok(performance.now() - began >= 200)
    await nbd.read(0, new Uint8Array(4096))
    t.notOk(existsSync(mark))
    await nbd.disconnect()
    t.ok(existsSync(mark))
    t.equal(await nbd.closed, undefined)
  })

  t.test('a failing prerun is a refusal by policy', async t => {
    const { path } = await nbdServer(t, image(t).path, { prerun: 'false' })
    t.match(await rejection(connectNbd({ path }, { exportName: 'disk' })), {
      fault: 'OPTION_REFUSED',
      reply: 'NBD_REP_ERR_POLICY',
      serverText: /denied/,
    })
  })

  t.test('over a stream that someone else opened', async t => {
    const { path: file, bytes } = image(t)
    const { path } = await nbdServer(t, file)
    const nbd = await openNbd(createConnection({ path }), { exportName: 'disk' })
    t.ok(bytes.equals(await readAll(nbd)))
    await nbd.disconnect()
  })
  t.end()
})
