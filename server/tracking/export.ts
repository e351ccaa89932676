// QEMU's own NBD server, for as long as bitmaps are read: on a socket in the domain's private folder, and gone before anything
// is merged, because an export of a base keeps it from being merged.

import { stat } from 'node:fs/promises'
import { setTimeout as delay } from 'node:timers/promises'
import { z } from 'zod'
import { Failure } from '../../shared/failures.ts'
import { grainSet, type GrainSet } from '../../shared/grain-set.ts'
import { connectNbd } from '../../shared/nbd/client.ts'
import { nothing, type Monitor } from '../libvirt/monitor.ts'
import { addCopies, copyName, removeCopies, type NodePoint } from './bitmaps.ts'

const PREFIX = 'nbd-clone-'
const SOCKET = 'nbd-clone.sock'
/** Bit 0 of `qemu:dirty-bitmap:` (QEMU, docs/interop/nbd.txt). */
const DIRTY = 1
/** What one question is about, in bytes: few answers, and never more extents than the client takes. */
const WINDOW = 32 * 1024 ** 3
const READ_MS = 30_000
const GONE_MS = 10_000
const POLL_MS = 50

const exportsShape = z.array(z.object({ id: z.string() }))

/** The bitmaps of one disk. */
export interface TrackedDisk {
  readonly target: string
  readonly node: string
  /** Bytes. */
  readonly size: number
  readonly points: readonly string[]
}

/** Target -> recovery point -> what changed since. */
export type Changed = Map<string, ReadonlyMap<string, GrainSet>>

/** Where QEMU may listen. @param monitor QEMU's monitor socket, in the domain's private folder */
export function socketBeside(monitor: string): string {
  return monitor.replace(/[^/]*$/, SOCKET)
}

/**
 * Reads what changed since each recovery point of each disk. Only while the domain is frozen; nothing of it is left in
 * QEMU, also when it fails.
 * @throws Failure SOURCE_REFUSED with QEMU's sentence; NbdError
 */
export async function readChanged(
  monitor: Monitor,
  socket: string,
  disks: readonly TrackedDisk[],
): Promise<Changed> {
  const wanted: NodePoint[] = disks.flatMap(({ node, points }) =>
    points.map(point => ({ node, point })),
  )
  if (wanted.length === 0) return new Map()
  const addr = { type: 'unix', data: { path: socket } }
  // Another's server must be left alone, so only one that we started is cleared away.
  await monitor.execute({ execute: 'nbd-server-start', arguments: { addr } }, nothing)
  try {
    await addCopies(monitor, wanted)
    const changed = new Map<string, ReadonlyMap<string, GrainSet>>()
    for (const disk of disks)
      if (disk.points.length > 0) changed.set(disk.target, await readDisk(monitor, socket, disk))
    return changed
  } finally {
    await clearTraces(monitor, socket)
  }
}

async function readDisk(
  monitor: Monitor,
  path: string,
  { target, node, size, points }: TrackedDisk,
): Promise<Map<string, GrainSet>> {
  const bitmaps = points.map(copyName)
  await monitor.execute(
    {
      execute: 'block-export-add',
      arguments: {
        ...{ type: 'nbd', id: `${PREFIX}${target}`, 'node-name': node, name: target },
        ...{ writable: false, bitmaps },
      },
    },
    nothing,
  )
  const contexts = points.map(point => `qemu:dirty-bitmap:${copyName(point)}`)
  const connection = await connectNbd(
    { path },
    {
      exportName: target,
      metaContexts: contexts,
      stallMs: READ_MS,
      signal: AbortSignal.timeout(READ_MS),
    },
  )
  try {
    if (connection.size < size)
      throw new Failure(
        'SOURCE_REFUSED',
        `QEMU has ${connection.size} bytes of disk ${target}, not ${size}`,
      )
    const sets = new Map<string, GrainSet>()
    for (const [at, point] of points.entries()) {
      const set = grainSet(size)
      for (let from = 0; from < size; from += WINDOW) {
        const length = Math.min(WINDOW, size - from)
        let offset = from
        for (const extent of await connection.blockStatus(from, length, contexts[at] ?? '')) {
          if ((extent.flags & DIRTY) !== 0) set.mark(offset, extent.length)
          offset += extent.length
        }
      }
      sets.set(point, set)
    }
    return sets
  } finally {
    await connection.disconnect()
    connection.destroy()
  }
}

/**
 * Takes away whatever a reader of bitmaps has put into QEMU, an interrupted one too: exports, the server if that is ours
 * alone, copies. The bitmaps of recovery points stay. @throws Failure SOURCE_REFUSED
 */
export async function clearTraces(monitor: Monitor, socket: string): Promise<void> {
  const ours = await ownExports(monitor)
  for (const id of ours.own)
    await monitor.execute({ execute: 'block-export-del', arguments: { id, mode: 'hard' } }, nothing)
  const late = Date.now() + GONE_MS
  while ((await ownExports(monitor)).own.length > 0) {
    if (Date.now() > late)
      throw new Failure('SOURCE_REFUSED', 'QEMU does not let go of the export of a bitmap')
    await delay(POLL_MS)
  }
  // QEMU removes its socket with the server, so the file says whose server it is.
  const listening = await stat(socket).catch(() => undefined)
  if (listening && ours.others === 0)
    await monitor.execute({ execute: 'nbd-server-stop' }, nothing).catch((error: unknown) => {
      if (!/not running/.test(String(error))) throw error
    })
  await removeCopies(monitor)
}

async function ownExports(monitor: Monitor): Promise<{ own: string[]; others: number }> {
  const all = await monitor.execute({ execute: 'query-block-exports' }, exportsShape)
  const own = all.map(({ id }) => id).filter(id => id.startsWith(PREFIX))
  return { own, others: all.length - own.length }
}
