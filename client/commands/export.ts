// clone export: one generation into a folder of its own, claimed meanwhile, so that neither a pull nor a prune takes it away.

import path from 'node:path'
import { Cleanup } from '../../shared/cleanup.ts'
import { Failure } from '../../shared/failures.ts'
import type { DiskFormat } from '../../shared/gate.ts'
import type { Watcher } from '../attempt.ts'
import type { CloneConfig } from '../config/effective.ts'
import { exportGeneration } from '../export.ts'
import { chooseGeneration } from '../store/choose.ts'
import { withClaim } from '../store/claims.ts'
import { ofStore } from '../store/failure.ts'
import { newFolder } from '../store/folder.ts'
import {
  isSound,
  isUndamaged,
  listGenerations,
  type Generation,
  type Sound,
} from '../store/generation.ts'
import { lockClone } from '../store/guard.ts'
import { layoutOf } from '../store/layout.ts'
import { recover } from '../store/undo.ts'
import { chainOf } from '../store/view.ts'

export interface ExportCommand {
  /** A recovery point's id or a seq; the newest undamaged one when undefined. */
  readonly generation: string | undefined
  readonly to: string
  /** Undefined: images as they are. */
  readonly format: DiskFormat | undefined
}
export interface Exported {
  readonly clone: string
  readonly id: string
  readonly seq: number
  readonly folder: string
  readonly disks: Generation['disks']
}

/** @throws Failure USAGE, LOCKED, INTEGRITY, SPACE, STANDBY_IO, UNSAFE, INTERRUPTED */
export async function exportCommand(
  clone: CloneConfig,
  { generation: which, to, format }: ExportCommand,
  signal: AbortSignal,
  watcher: Watcher,
): Promise<Exported> {
  const folder = path.resolve(to)
  await using cleanup = new Cleanup()
  try {
    chosen(clone, await listGenerations(clone.dir), which)
    const target = await newFolder(folder, clone.dir, cleanup)
    const { found, sound } = await claimed(clone, which, signal, cleanup)
    cleanup.defer(() => watcher.done())
    const work = { found, target, format, signal, watcher }
    const { disks, seq } = await exportGeneration(clone.name, sound, work, cleanup)
    return { clone: clone.name, id: found.id, seq, folder, disks }
  } catch (error) {
    throw ofStore(clone.dir, error)
  }
}

/** Claims the generation, and those that have chunks of it, under the lock; the lock is not needed for longer. */
async function claimed(
  clone: CloneConfig,
  which: string | undefined,
  signal: AbortSignal,
  cleanup: Cleanup,
): Promise<{ found: Sound; sound: Sound[] }> {
  const layout = layoutOf(clone.dir)
  const unlock = lockClone(layout, 'export')
  try {
    await recover(layout, signal)
    const all = await listGenerations(clone.dir)
    const sound = all.filter(isSound)
    const found = chosen(clone, all, which)
    const links = []
    for (const { target } of found.generation.disks)
      links.push(...(await chainOf(sound, found, target)))
    const held = new Map(links.map(link => [link.found.id, link.found]))
    for (const one of held.values()) await withClaim(one, 'export', cleanup)
    return { found, sound }
  } finally {
    unlock()
  }
}

/** Without a name the newest that is not damaged; a damaged one is refused when it is named, too. */
function chosen(
  clone: CloneConfig,
  all: Awaited<ReturnType<typeof listGenerations>>,
  which: string | undefined,
): Sound {
  const undamaged = all.filter(isSound).filter(isUndamaged)
  const among = which === undefined && undamaged.length > 0 ? undamaged : all
  const found = chooseGeneration(clone.name, among, which)
  if (found.damaged === undefined) return found
  throw new Failure('INTEGRITY', `generation ${found.id} is damaged: ${found.damaged}`, {
    remedy: `choose another one: clone list ${clone.name}`,
  })
}
