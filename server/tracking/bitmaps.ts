// Recovery-point bitmaps in QEMU: added while a domain is frozen, to the node of each base's file, so that each records every
// change since that recovery point, the merge's own included. The name is the recovery point, so no file says what exists.

import { z } from 'zod'
import { GRAIN } from '../../shared/grain-set.ts'
import { isRecoveryPointId } from '../../shared/names.ts'
import { plainPath } from '../libvirt/graph.ts'
import { nothing, type Monitor } from '../libvirt/monitor.ts'

const PREFIX = 'nbd-clone-'
/** Of the merged, disabled copies that are read, and of nothing else. */
const COPY_PREFIX = 'nbd-clone-read-'

const queryNodes = z.array(
  z.object({
    'node-name': z.string(),
    drv: z.string(),
    file: z.string(),
    'dirty-bitmaps': z
      .array(
        z.object({
          name: z.string().optional(),
          /** Dirty bytes. */
          count: z.number(),
          recording: z.boolean(),
          inconsistent: z.boolean().optional(),
        }),
      )
      .optional(),
  }),
)

/** The node of an image's file or device, below any format: its offsets are those that are exported. */
export interface StorageNode {
  readonly name: string
  /** The image. */
  readonly file: string
  /** Recovery point -> bytes that changed since. */
  readonly points: ReadonlyMap<string, number>
  /** Copies that a reader has left. */
  readonly copies: readonly string[]
}

/** A bitmap on a node. */
export interface NodePoint {
  readonly node: string
  readonly point: string
}

/** The name of the copy of a recovery point's bitmap, for the time that it is read. */
export const copyName = (point: string): string => `${COPY_PREFIX}${point}`

/** The nodes of all images of a running domain, with the bitmaps that are ours. @throws Failure SOURCE_REFUSED */
export async function readStorageNodes(monitor: Monitor): Promise<StorageNode[]> {
  const nodes = await monitor.execute(
    { execute: 'query-named-block-nodes', arguments: { flat: true } },
    queryNodes,
  )
  return nodes
    .filter(({ drv }) => /^(file|host_device)$/.test(drv))
    .map(node => {
      const bitmaps = node['dirty-bitmaps'] ?? []
      const points = new Map<string, number>()
      for (const { name = '', count, recording, inconsistent } of bitmaps) {
        const point = name.slice(PREFIX.length)
        if (!name.startsWith(PREFIX) || !isRecoveryPointId(point)) continue
        // One that was switched off has missed changes.
        if (recording && inconsistent !== true) points.set(point, count)
      }
      const copies = bitmaps.flatMap(({ name = '' }) => (name.startsWith(COPY_PREFIX) ? name : []))
      return { name: node['node-name'], file: plainPath(node.file), points, copies }
    })
}

/** Begins to record, on all nodes or on none. @throws Failure SOURCE_REFUSED */
export async function addPoint(
  monitor: Monitor,
  nodes: readonly string[],
  point: string,
): Promise<void> {
  const actions = nodes.map(node => add(node, `${PREFIX}${point}`, false))
  await transact(monitor, actions)
}

/** Ends recording. @throws Failure SOURCE_REFUSED, when one of them is not there any more too */
export async function removePoints(monitor: Monitor, points: readonly NodePoint[]): Promise<void> {
  await transact(
    monitor,
    points.map(({ node, point }) => remove(node, `${PREFIX}${point}`)),
  )
}

/** What of bitmaps is dirty now, as disabled copies that an export may name. @throws Failure SOURCE_REFUSED */
export async function addCopies(monitor: Monitor, points: readonly NodePoint[]): Promise<void> {
  await transact(
    monitor,
    points.flatMap(({ node, point }) => [
      add(node, copyName(point), true),
      {
        type: 'block-dirty-bitmap-merge',
        data: { node, target: copyName(point), bitmaps: [`${PREFIX}${point}`] },
      },
    ]),
  )
}

/** Removes the copies of an interrupted reader too. @throws Failure SOURCE_REFUSED */
export async function removeCopies(monitor: Monitor): Promise<void> {
  const nodes = await readStorageNodes(monitor)
  await transact(
    monitor,
    nodes.flatMap(({ name, copies }) => copies.map(copy => remove(name, copy))),
  )
}

const add = (node: string, name: string, disabled: boolean): object => ({
  type: 'block-dirty-bitmap-add',
  data: { node, name, granularity: GRAIN, persistent: false, disabled },
})

const remove = (node: string, name: string): object => ({
  type: 'block-dirty-bitmap-remove',
  data: { node, name },
})

async function transact(monitor: Monitor, actions: readonly object[]): Promise<void> {
  if (actions.length === 0) return
  await monitor.execute({ execute: 'transaction', arguments: { actions } }, nothing)
}
