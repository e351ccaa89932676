// The plan of a frozen session: what the source knows of holes and changes is asked, audited, and made into a plan.

import { open } from 'node:fs/promises'
import path from 'node:path'
import { CHUNK_SIZE } from '../shared/chunks.ts'
import { FEATURES } from '../shared/gate.ts'
import type { GrainSet } from '../shared/grain-set.ts'
import { audit, digestsOf, partlyChangedSample, rottenOf, type Ask } from './audit.ts'
import { storeFailure } from './copy/image.ts'
import {
  planPull,
  type Change,
  type DiskPlan,
  type DiskToPull,
  type Held,
  type Means,
} from './plan.ts'
import { sourceDigests } from './source/digests.ts'
import { changesSince, dataOf, isKnown } from './source/extents.ts'
import type { Gate } from './source/gate.ts'
import type { Base, Bases } from './store/bases.ts'
import { manifestName } from './store/layout.ts'

export interface FrozenPlan {
  readonly plan: DiskPlan[]
  /** Target -> what changed, of the disks of which only that is read. */
  readonly changed: ReadonlyMap<string, GrainSet>
  /** Target -> where there is data, as far as the source knows. */
  readonly data: ReadonlyMap<string, GrainSet>
  /** Target -> chunk -> the source's digest of some of which only some changed. */
  readonly promised: ReadonlyMap<string, ReadonlyMap<number, string>>
  /** Chunks whose digests were asked for beside what was recorded. */
  readonly audited: number
  /** What the audit found: the source's bitmaps are not to be trusted. */
  readonly alarm?: string
}

/** The session that is asked. */
export interface Asked {
  readonly gate: Pick<Gate, 'call'>
  readonly token: string
  readonly features: readonly string[]
  readonly signal: AbortSignal
}

/** @param held as planPull takes it. @throws as the gate's calls; Failure STANDBY_IO with the path */
export async function planFrozen(
  { gate, token, features, signal }: Asked,
  disks: readonly DiskToPull[],
  held: readonly Held[] | undefined,
  bases: Bases,
  means: Means,
): Promise<FrozenPlan> {
  const data = new Map<string, GrainSet>()
  if (features.includes(FEATURES.allocation))
    // Who wants every byte believes no map.
    await Promise.all(
      (means.full ? [] : disks).map(async disk => {
        const told = await dataOf(gate, token, disk, signal)
        if (isKnown(told)) data.set(disk.target, told)
      }),
    )

  const changed = new Map<string, GrainSet>()
  const changes = new Map<string, Change>()
  const promised = new Map<string, ReadonlyMap<number, string>>()
  let audited = 0
  let alarm: string | undefined
  const wouldTrack = planPull(disks, held, { ...means, changes: undefined })
  for (const disk of wouldTrack) {
    const base = bases.of.get(disk.target)
    if (disk.kind !== 'changed' || !base) continue
    if (!features.includes(FEATURES.changes)) {
      changes.set(disk.target, { reason: 'the source does not tell this client what changed' })
      continue
    }
    const told = await changesSince(gate, token, disk, base.generation.id, signal)
    if (!isKnown(told)) {
      changes.set(disk.target, told)
      continue
    }
    markResized(told, base.disk.size)
    const ask = sourceDigests(gate, token, disk.target, disk.size, signal, true)
    const found = await auditOne(told, base, ask)
    audited += found.sample.length
    if (found.lie === undefined) {
      const digests = await digestsOf(partlyChangedSample(told, Math.random), ask)
      audited += digests.size
      promised.set(disk.target, digests)
      changed.set(disk.target, told)
      changes.set(disk.target, { bytes: told.bytes() })
    } else {
      alarm = `disk ${disk.target}: chunk ${found.lie} (byte ${found.lie * CHUNK_SIZE}) is another one than in ${base.generation.id}, and the source says that it did not change`
      changes.set(disk.target, { reason: alarm })
    }
  }
  // One lie is enough: nothing of what was recorded is believed in this pull.
  if (alarm !== undefined)
    for (const target of changed.keys()) changes.set(target, { reason: alarm })
  const plan = planPull(disks, held, { ...means, changes })
  return { plan, changed, data, promised, audited, ...(alarm !== undefined && { alarm }) }
}

/** From the chunk on in which the smaller of both sizes ends, a chunk is another one, or as long as it was by chance. */
function markResized(changed: GrainSet, before: number): void {
  const { size } = changed
  if (size === before) return
  const from = Math.floor((Math.min(size, before) - 1) / CHUNK_SIZE) * CHUNK_SIZE
  if (from >= 0 && from < size) changed.mark(from, size - from)
}

async function auditOne(
  changed: GrainSet,
  { generation, disk, image }: Base,
  ask: Ask,
): Promise<{ sample: readonly number[]; lie?: number }> {
  const manifest = path.join(generation.dir, manifestName(disk))
  const was = await open(manifest, 'r').catch((error: unknown) => {
    throw storeFailure(manifest, error)
  })
  try {
    const found = await audit(changed, was.fd, ask, Math.random)
    const own = await open(image, 'r').catch((error: unknown) => {
      throw storeFailure(image, error)
    })
    // As if some of it had changed: the copy finds that the rest is not what it was, and gets it whole.
    const rotten = await rottenOf(found.sample, disk.size, own.fd, was.fd).finally(() =>
      own.close(),
    )
    for (const chunk of rotten) changed.mark(chunk * CHUNK_SIZE, 1)
    return found
  } finally {
    await was.close()
  }
}
