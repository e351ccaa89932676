// Tracking of changes, as a session uses it. Whatever fails here is a reason to compare by hash, never a failed session.

import { toFailure } from '../../shared/failures.ts'
import type { SessionDisk } from '../../shared/gate.ts'
import { domainSettings } from '../config/schema.ts'
import { findQemu, type QemuProcess } from '../libvirt/qemu-process.ts'
import type { Monitor } from '../libvirt/monitor.ts'
import type { Source } from '../source.ts'
import { addPoint, readStorageNodes, removePoints, type StorageNode } from './bitmaps.ts'
import { clearTraces, readChanged, socketBeside, type Changed } from './export.ts'
import { outdated, pushedOut } from './keep.ts'
import { acknowledgedBy, readLedger } from './ledger.ts'

/** What a session knows of changes. */
export interface Tracking {
  readonly changed: Changed
  /** Why it knows nothing, or less than it should. */
  readonly reason?: string
}

export const UNTRACKED: Tracking = {
  changed: new Map(),
  reason: 'the session was begun without tracking',
}

interface FrozenDisk extends SessionDisk {
  readonly base: string
}

/**
 * While a domain is frozen: reads what changed since each recovery point that is recorded, and records from this one on.
 * Never rejects.
 */
export async function track(
  source: Source,
  domain: string,
  uuid: string,
  recoveryPoint: string,
  disks: readonly FrozenDisk[],
): Promise<Tracking> {
  const { log, virsh, paths } = source
  const monitor = virsh.monitor(domain)
  let changed: Changed = new Map()
  let reason: string | undefined
  try {
    const qemu = await findQemu(uuid)
    if (qemu?.monitor === undefined)
      return { changed, reason: "the folder of QEMU's monitor is not known" }
    const nodes = await readStorageNodes(monitor)
    const placed = disks.map(disk => ({ disk, node: nodeOf(nodes, disk) }))
    changed = await readChanged(
      monitor,
      socketBeside(qemu.monitor),
      placed.map(({ disk: { target, size }, node }) => {
        return { target, size, node: node.name, points: [...node.points.keys()] }
      }),
    ).catch((error: unknown) => {
      reason = toFailure(error).message
      log.warn({ domain, recoveryPoint, reason }, 'what was recorded cannot be read')
      return new Map() as Changed
    })
    // Recorded from here on all the same: only this pull compares.
    const own = placed.map(({ node }) => node)
    await addPoint(
      monitor,
      own.map(({ name }) => name),
      recoveryPoint,
    )
    const points = [...new Set([...own.flatMap(({ points }) => [...points.keys()]), recoveryPoint])]
    const ledger = await readLedger(paths.tracking, domain)
    await forget(monitor, own, pushedOut(points, recoveryPoint, ledger, Date.now()))
    return { changed, ...(reason !== undefined && { reason }) }
  } catch (error) {
    const { message } = toFailure(error)
    log.warn({ domain, recoveryPoint, reason: message }, 'changes are not tracked')
    return { changed, reason: message }
  }
}

/** @throws Error when QEMU has the base open under no name, or two */
function nodeOf(nodes: readonly StorageNode[], { target, base }: FrozenDisk): StorageNode {
  const own = nodes.filter(({ file }) => file === base)
  const [node] = own
  if (node && own.length === 1) return node
  throw new Error(`QEMU has ${own.length} nodes for ${base}, disk ${target}`)
}

async function forget(
  monitor: Monitor,
  nodes: readonly StorageNode[],
  points: readonly string[],
): Promise<void> {
  await removePoints(
    monitor,
    nodes.flatMap(({ name, points: own }) =>
      points.filter(point => own.has(point)).map(point => ({ node: name, point })),
    ),
  )
}

/** A clone holds a recovery point, verified: what nobody needs any more goes. Never rejects. @param holder names that clone */
export async function acknowledged(
  source: Source,
  domain: string,
  holder: string,
  point: string,
): Promise<void> {
  const { log, paths, virsh } = source
  try {
    const ledger = await acknowledgedBy(paths.tracking, domain, holder, point)
    const monitor = virsh.monitor(domain)
    const nodes = await readStorageNodes(monitor)
    const points = [...new Set(nodes.flatMap(node => [...node.points.keys()]))]
    await forget(monitor, nodes, outdated(points, point, ledger))
  } catch (error) {
    log.debug({ domain, point, reason: toFailure(error).message }, 'bitmaps stay for now')
  }
}

/** Before a merge: an export of a base, and a server that runs for it, would keep it from being merged. Never rejects. */
export async function endReading(
  { log, virsh }: Source,
  domain: string,
  { monitor }: QemuProcess,
): Promise<void> {
  if (monitor === undefined) return
  await clearTraces(virsh.monitor(domain), socketBeside(monitor)).catch((error: unknown) =>
    log.warn({ domain, error }, 'what reads bitmaps stays in QEMU'),
  )
}

/** Removes every recovery-point bitmap of a running domain. @returns how many. @throws Failure SOURCE_REFUSED */
export async function forgetAll(monitor: Monitor): Promise<number> {
  const nodes = await readStorageNodes(monitor)
  const all = nodes.flatMap(({ name, points }) =>
    [...points.keys()].map(point => ({ node: name, point })),
  )
  await removePoints(monitor, all)
  return all.length
}

/** Domains that run and are not to be tracked, or not exported any more, keep nothing of ours. Never rejects. */
export async function forgetUntracked({ virsh, log, config }: Source): Promise<void> {
  const isTracked = (domain: string): boolean =>
    Object.hasOwn(config.domains, domain) && domainSettings(config, domain).tracking
  try {
    const listed = await virsh.run(['list', '--name'])
    for (const domain of listed.stdout.split('\n').filter(name => name.trim() !== '')) {
      if (isTracked(domain)) continue
      const count = await forgetAll(virsh.monitor(domain))
      if (count > 0) log.info({ domain, count }, 'bitmaps removed')
    }
  } catch (error) {
    log.debug({ error }, 'not every domain was looked at for bitmaps')
  }
}
