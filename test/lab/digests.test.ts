// Digests of a frozen base on a real guest: they are those of its bytes, hashing is progress, and who hashes is gone before
// the merge.

import { setTimeout as delay } from 'node:timers/promises'
import t from 'tap'
import { findHasher, startHashingClient, stopHasher } from './hashing.ts'
import { waitFor } from './processes.ts'
import {
  guestWrites,
  sourceFaults,
  startServe,
  startWorld,
  untilOnBases,
  VDA,
  VDB,
} from './world.ts'

t.setTimeout(400_000)

const MIB = 1024 * 1024
const STALL_MS = 3000
/** Of a file, through the page cache: `split -b 1M --filter=sha256sum` starts more processes than a busy host likes. */
const DIGESTS = `const fs = require('fs'), chunk = Buffer.alloc(${MIB}), fd = fs.openSync(process.argv[1])
for (let read; (read = fs.readSync(fd, chunk)) > 0;)
  console.log(require('crypto').createHash('sha256').update(chunk.subarray(0, read)).digest('hex'))`
const CONFIG = 'domains: { mydomain: { session: { stall: 3s, floor: 64KiB } } }\n'

t.test('a client that compares by hash', async t => {
  const lab = await startWorld(CONFIG)
  t.teardown(() => lab[Symbol.asyncDispose]())
  const serve = await startServe(lab)

  t.afterEach(async () => {
    await untilOnBases(lab, 15)
    t.notOk(await findHasher(lab), 'nobody hashes any more')
    t.strictSame(await sourceFaults(lab), [], 'the source is as it was found')
    await guestWrites(lab)
  })

  t.test('gets the digests of what each base holds, and may take its time', async t => {
    await using client = await startHashingClient(lab, serve)
    const { features } = await client.ask('hello', {
      ...{ protocol: { min: 1, max: 1 }, version: 'test', clockMs: Date.now() },
    })
    t.strictSame(features, ['digests', 'allocation', 'changes'])
    const { disks } = await client.ask('session.info', { token: client.token })
    // Nothing is read by NBD from here on: only this keeps the session from being taken for one that stands still.
    const end = Date.now() + 2 * STALL_MS
    const compared = new AbortController()
    const hashing = (async () => {
      while (!compared.signal.aborted || Date.now() < end) {
        await client.digests('vda', 0, 8)
        await delay(100)
      }
    })()
    hashing.catch(() => undefined)
    const described = await client.ask('describe', { domain: 'mydomain' })
    for (const [target, base] of [
      ['vda', VDA],
      ['vdb', VDB],
    ] as const) {
      const size = disks.find(disk => disk.target === target)?.size ?? 0
      const digests = await client.digests(target, 0, Math.ceil(size / MIB))
      const { stdout } = await lab.source(['node', '-e', DIGESTS, base])
      t.strictSame(digests, stdout.split('\n'), target)
      const blocks = Number((await lab.source(['stat', '-c', '%b', base])).stdout) * 512
      const { allocated } = described.disks.find(disk => disk.target === target) ?? {}
      t.equal(allocated, Math.min(blocks, size), `${target} takes ${blocks} of ${size}`)
    }
    compared.abort()
    await hashing
    const { stdout } = await lab.source(['clone-server', 'status'])
    t.match(
      stdout,
      /^mydomain +frozen .*local vda [\d.]+ (?:Ki)?B/m,
      'not stalled, though nothing was read',
    )
    t.match(stdout, /compared by hash \d/)
    await client.ask('session.release', { token: client.token })
  })

  t.test('is ended like any other when nothing is hashed for it', async t => {
    await using client = await startHashingClient(lab, serve)
    await client.digests('vda', 0, 1)
    await stopHasher(lab)
    const began = Date.now()
    await t.rejects(client.digests('vda', 0, 8), {
      code: 'SOURCE_REFUSED',
      message: /over: the session moved fewer than 64 KiB a second for 3\.0s/,
    })
    t.ok(Date.now() - began < STALL_MS + 5000, `after ${Date.now() - began} ms`)
  })

  t.test('costs the source no lapse when it is killed while it waits', async t => {
    await using client = await startHashingClient(lab, serve)
    await client.digests('vda', 0, 1)
    await stopHasher(lab)
    const asked = t.rejects(client.digests('vda', 0, 8))
    const merged = serve.count('merged, on its bases')
    await client.kill()
    await asked
    await waitFor('the merge', 10, () => serve.count('merged, on its bases') > merged)
  })
})
