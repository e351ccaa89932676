// Recovery-point bitmaps in a real QEMU, read through its own NBD server; nothing is left of that. And which bitmaps are kept.

import t, { type Test } from 'tap'
import { execa } from 'execa'
import { existsSync } from 'node:fs'
import { mkdtemp, open, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { z } from 'zod'
import { GRAIN } from '../shared/grain-set.ts'
import { newRecoveryPointId } from '../shared/names.ts'
import { readAllocation } from '../server/session/allocation.ts'
import { addPoint, readStorageNodes, removePoints } from '../server/tracking/bitmaps.ts'
import { clearTraces, readChanged } from '../server/tracking/export.ts'
import { outdated, pushedOut } from '../server/tracking/keep.ts'
import { forgetAll } from '../server/tracking/tracking.ts'
import { realQemu, type RealQemu } from './server/real-qemu.ts'

const MIB = 1024 * 1024
const SIZE = 8 * MIB

interface Qemu extends RealQemu {
  readonly image: string
}

async function aQemu(t: Test, format: 'raw' | 'qcow2'): Promise<Qemu> {
  const dir = await mkdtemp(path.join(tmpdir(), 'nbd-clone-test-'))
  t.teardown(() => rm(dir, { recursive: true, force: true }))
  const image = path.join(dir, `vda.${format}`)
  await execa('qemu-img', ['create', '-q', '-f', format, image, String(SIZE)])
  const qemu = await realQemu(image, format)
  t.teardown(() => qemu[Symbol.asyncDispose]())
  return { ...qemu, image }
}

const disk = (points: readonly string[], size = SIZE) => ({
  ...{ target: 'vda', node: 'storage', size, points },
})

const sizeOf = async (file: string): Promise<number> => {
  const handle = await open(file)
  const { size } = await handle.stat()
  await handle.close()
  return size
}

/** Exports, bitmaps that are not of a recovery point, a server: what must not stay. */
async function traces({ monitor, socket }: Qemu): Promise<unknown[]> {
  const nodes = await readStorageNodes(monitor)
  const exports = await monitor.execute({ execute: 'query-block-exports' }, z.array(z.unknown()))
  return [
    ...exports,
    ...nodes.flatMap(({ copies }) => copies),
    ...(existsSync(socket) ? [socket] : []),
  ]
}

t.test('each recovery point knows what changed since, and nothing else', async t => {
  const qemu = await aQemu(t, 'raw')
  const { monitor, socket } = qemu
  const a = '20261127T100000Z-aaaa'
  const b = '20261127T110000Z-bbbb'
  await addPoint(monitor, ['storage'], a)
  await qemu.io('write -P 1 1M 64k')
  await addPoint(monitor, ['storage'], b)
  await qemu.io('write -z 3M 1')
  const [node] = (await readStorageNodes(monitor)).filter(({ name }) => name === 'storage')
  t.equal(node?.points.get(a), 2 * GRAIN)
  const changed = await readChanged(monitor, socket, [disk([a, b])])
  t.strictSame(
    [...(changed.get('vda')?.get(a)?.extents() ?? [])],
    [
      [MIB, GRAIN],
      [3 * MIB, GRAIN],
    ],
  )
  t.strictSame([...(changed.get('vda')?.get(b)?.extents() ?? [])], [[3 * MIB, GRAIN]])
  t.strictSame(await traces(qemu), [])
  // Reading has not made it forget.
  const again = await readChanged(monitor, socket, [disk([a])])
  t.equal(again.get('vda')?.get(a)?.bytes(), 2 * GRAIN)

  await removePoints(monitor, [{ node: 'storage', point: a }])
  await t.rejects(readChanged(monitor, socket, [disk([a])]), { code: 'SOURCE_REFUSED' })
  t.strictSame(await traces(qemu), [])
  t.equal(await forgetAll(monitor), 1)
})

t.test('of a qcow2 the container is recorded, as it is exported', async t => {
  const qemu = await aQemu(t, 'qcow2')
  const { monitor, socket, image } = qemu
  const point = newRecoveryPointId(new Date())
  await addPoint(monitor, ['storage'], point)
  await qemu.io('write -P 1 5M 1M')
  await qemu.io('flush')
  // Under an overlay libvirt has it read-only: QEMU exports no container that may still grow.
  await qemu.setFrozen(true)
  const size = await sizeOf(image)
  const changed = await readChanged(monitor, socket, [disk([point], size)])
  const set = changed.get('vda')?.get(point)
  t.ok((set?.bytes() ?? 0) >= MIB, 'data and metadata')
  t.ok((set?.bytes() ?? 0) < 2 * MIB)
  t.strictSame(await traces(qemu), [])
})

t.test('what a reader that was killed has left is cleared away, another server is not', async t => {
  const qemu = await aQemu(t, 'raw')
  const { monitor, socket } = qemu
  const point = newRecoveryPointId(new Date())
  await addPoint(monitor, ['storage'], point)
  const addr = (file: string) => ({ addr: { type: 'unix', data: { path: file } } })
  const run = (execute: string, argument: Record<string, unknown>) =>
    monitor.execute({ execute, arguments: argument }, z.unknown())
  await run('nbd-server-start', addr(socket))
  await run('block-dirty-bitmap-add', {
    ...{ node: 'storage', name: `nbd-clone-read-${point}`, disabled: true, granularity: GRAIN },
  })
  await run('block-export-add', {
    ...{ type: 'nbd', id: 'nbd-clone-vda', 'node-name': 'storage', name: 'vda' },
    bitmaps: [`nbd-clone-read-${point}`],
  })
  t.equal((await traces(qemu)).length, 3)
  await clearTraces(monitor, socket)
  t.strictSame(await traces(qemu), [])

  const other = `${socket}.other`
  await run('nbd-server-start', addr(other))
  await t.rejects(readChanged(monitor, socket, [disk([point])]), /already running/)
  t.ok(existsSync(other), 'the server of another is left alone')
  const nodes = await readStorageNodes(monitor)
  t.ok(
    nodes.some(({ points }) => points.has(point)),
    'the bitmap stays',
  )
})

t.test('holes of a file are known', async t => {
  const dir = await mkdtemp(path.join(tmpdir(), 'nbd-clone-test-'))
  t.teardown(() => rm(dir, { recursive: true, force: true }))
  const file = path.join(dir, 'disk.raw')
  const handle = await open(file, 'w')
  await handle.truncate(10 * MIB + 100)
  await handle.write(Buffer.alloc(1000, 1), 0, 1000, 4 * MIB)
  await handle.write(Buffer.alloc(50, 1), 0, 50, 10 * MIB + 50)
  await handle.close()
  const data = await readAllocation(file, 10 * MIB + 100)
  t.ok(data.touches(4 * MIB, 1))
  t.ok(data.touches(10 * MIB + 50, 50))
  t.notOk(data.touches(MIB, 2 * MIB))
  await t.rejects(readAllocation(path.join(dir, 'none'), 1), { code: 'SOURCE_REFUSED' })
})

t.test('what a standby holds outlives pulls that fail', async t => {
  const now = Date.parse('2026-11-27T12:00:00Z')
  const points = Array.from({ length: 9 }, (_, at) => `20261127T1${at}0000Z-aaaa`)
  const [oldest = '', second = ''] = points
  const newest = points.at(-1) ?? ''
  t.strictSame(pushedOut(points, newest, { one: oldest }, now), [second])
  t.strictSame(pushedOut(points.slice(0, 8), points[7] ?? '', {}, now), [])
  t.strictSame(
    pushedOut(['20261101T000000Z-aaaa', newest], newest, { one: '20261101T000000Z-aaaa' }, now),
    ['20261101T000000Z-aaaa'],
    'too old',
  )
})

t.test('an acknowledgement frees what no other standby holds', async t => {
  const [a, b, c] = ['20261127T100000Z-aaaa', '20261127T110000Z-bbbb', '20261127T120000Z-cccc']
  t.strictSame(outdated([a, b, c], b, { one: b, two: a }), [])
  t.strictSame(outdated([a, b, c], b, { one: b }), [a], 'what is newer stays')
})
