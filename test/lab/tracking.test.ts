// A source that records what changed, in a real domain: pulls read that and nothing else, and nothing that reads bitmaps stays.

import t from 'tap'
import {
  clone,
  CLONE,
  guestWrites,
  sourceConfig,
  sourceFaults,
  startServe,
  startWorld,
  untilOnBases,
  VDA,
  VDB,
  wrapProgram,
} from './world.ts'

t.setTimeout(800_000)

interface Line {
  readonly plan: readonly { target: string; kind: string; reason: string; size: number }[]
  readonly bytes: { readonly read: number; readonly hashed: number }
  readonly recoveryPoint: string
  readonly audited: number
}

t.test('a source that tracks', async t => {
  const lab = await startWorld()
  t.teardown(() => lab[Symbol.asyncDispose]())
  let serve = await startServe(lab)

  const lastLine = async (): Promise<Line> => {
    const text = await lab.readFile('standby', `${CLONE}/history.jsonl`)
    return JSON.parse(text.trim().split('\n').at(-1) ?? '') as Line
  }
  const qmp = async (execute: string): Promise<string> =>
    (await lab.source(['virsh', 'qemu-monitor-command', 'mydomain', JSON.stringify({ execute })]))
      .stdout
  const bitmaps = async (): Promise<string[]> => [
    ...new Set(
      [...(await qmp('query-named-block-nodes')).matchAll(/"name":"(nbd-clone-[^"]*)"/g)].map(
        ([, name = '']) => name,
      ),
    ),
  ]
  /** What reads bitmaps, and must be gone before a merge. */
  const readers = async (): Promise<string[]> => [
    ...((await qmp('query-block-exports')).match(/nbd-clone-\w+/g) ?? []),
    ...(await bitmaps()).filter(name => name.startsWith('nbd-clone-read-')),
  ]
  /** A pull into which nobody can write: its images are the bases' bytes. */
  const pullHeld = async (): Promise<Line> => {
    t.equal((await lab.source(['clone-server', 'session', 'open', 'mydomain'])).exitCode, 0)
    t.strictSame(await readers(), [])
    const pulled = await clone(lab, 'pull', 'mydomain')
    t.equal(pulled.exitCode, 0, pulled.stderr)
    const sums = async (host: 'source' | 'standby', ...files: string[]): Promise<string[]> =>
      (await lab[host](['sha256sum', ...files])).stdout.match(/^[0-9a-f]{64}/gm) ?? []
    t.strictSame(
      await sums('standby', `${CLONE}/current/vda.raw`, `${CLONE}/current/vdb.qcow2`),
      await sums('source', VDA, VDB),
      'bit for bit the frozen bases',
    )
    await lab.source(['clone-server', 'session', 'close', 'mydomain'])
    t.strictSame(await sourceFaults(lab), [])
    return lastLine()
  }

  await t.test('the first pull reads what is no hole, and records from there on', async t => {
    const { plan, bytes, recoveryPoint } = await pullHeld()
    t.match(plan, [{ kind: 'full' }, { kind: 'full' }])
    t.ok(bytes.read < plan.reduce((sum, { size }) => sum + size, 0), 'holes are not read')
    t.strictSame(await bitmaps(), [`nbd-clone-${recoveryPoint}`])
  })

  await t.test('further pulls read what changed, raw and qcow2 alike', async t => {
    for (let round = 0; round < 2; round++) {
      await guestWrites(lab)
      const { plan, bytes, audited, recoveryPoint } = await pullHeld()
      t.match(plan, [{ kind: 'changed' }, { kind: 'changed' }])
      t.ok(bytes.read > 0 && bytes.read < 16 * 1024 * 1024, `${bytes.read} bytes`)
      t.ok(audited >= 10)
      t.strictSame(await bitmaps(), [`nbd-clone-${recoveryPoint}`], 'the older one is freed')
    }
  })

  await t.test(
    'disks that grow under their running guest are pulled with their new ends',
    async t => {
      const MIB = 1024 * 1024
      const grown = new Map<string, number>()
      for (const target of ['vda', 'vdb']) {
        const { stdout } = await lab.source(['virsh', 'domblkinfo', 'mydomain', target])
        const size = Number(/^Capacity:\s+(\d+)/m.exec(stdout)?.[1]) + 3 * MIB
        grown.set(target, size)
        const resized = await lab.source(['virsh', 'blockresize', 'mydomain', target, `${size}B`])
        t.equal(resized.exitCode, 0, resized.stderr)
      }
      await guestWrites(lab)
      const { plan, bytes } = await pullHeld()
      for (const { target, kind, reason } of plan) t.comment(`${target}: ${kind}, ${reason}`)
      t.equal(plan.find(({ target }) => target === 'vda')?.size, grown.get('vda'))
      t.ok(bytes.read < 64 * MIB, `${bytes.read} bytes`)
      await guestWrites(lab)
      t.match((await pullHeld()).plan, [{ kind: 'changed' }, { kind: 'changed' }])
    },
  )

  await t.test('a dry run says how much, and freezes nothing', async t => {
    await guestWrites(lab)
    const { stdout } = await lab.standby(['clone', 'pull', 'mydomain', '--dry-run'])
    t.match(stdout, /vda, .*, changed: .* changed since /)
    t.match(stdout, /vdb, .*, changed: .* changed since /)
  })

  await t.test('a guest that was started anew costs a comparison, not a transfer', async t => {
    await lab.source(['virsh', 'destroy', 'mydomain'])
    await lab.source(['virsh', 'start', 'mydomain'])
    const { plan, bytes } = await pullHeld()
    t.match(plan, [
      { kind: 'hash', reason: /compared with .*; the source has not recorded changes since/ },
      { kind: 'hash' },
    ])
    t.ok(bytes.read < 64 * 1024 * 1024, `${bytes.read} bytes`)
    await guestWrites(lab)
    t.match((await pullHeld()).plan, [{ kind: 'changed' }, { kind: 'changed' }])
  })

  await t.test('serve that is killed while it reads a bitmap leaves nothing in QEMU', async t => {
    const script =
      'case " $* " in *block-export-add*) if [ -e /run/kill ]; then "$real" "$@"; rm /run/kill; kill -9 $PPID; fi;; esac'
    const path = await wrapProgram(lab, 'virsh', script)
    await serve.stop()
    serve = await startServe(lab, path)
    await lab.source(['touch', '/run/kill'])
    t.not((await clone(lab, 'pull', 'mydomain')).exitCode, 0)
    t.not((await readers()).length, 0, 'it was killed in the middle')
    await serve.process.result
    serve = await startServe(lab)
    await untilOnBases(lab, 30)
    t.strictSame(await readers(), [])
    const { plan } = await pullHeld()
    t.match(plan, [{ kind: 'changed' }, { kind: 'changed' }], 'what was recorded is there')
  })

  await t.test('with tracking off no bitmap stays, and pulls compare', async t => {
    await serve.stop()
    await lab.writeFile('source', '/etc/nbd-clone/source.yaml', sourceConfig('tracking: false'))
    serve = await startServe(lab)
    t.match((await pullHeld()).plan, [{ kind: 'hash' }, { kind: 'hash' }])
    t.strictSame(await bitmaps(), [])
  })
  await serve.stop()
})
