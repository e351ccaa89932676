// Where everything of a clone lies, and the making of its folders.

import { mkdir, readdir } from 'node:fs/promises'
import path from 'node:path'
import { isRecoveryPointId } from '../../shared/names.ts'
import { fsyncPath } from '../../shared/host/durable.ts'

export interface Layout {
  readonly dir: string
  readonly generations: string
  readonly staging: string
  readonly current: string
  readonly state: string
  readonly history: string
  readonly lock: string
  /** The journal of an exchange; there only while one is open. */
  readonly undo: string
}

export function layoutOf(dir: string): Layout {
  return {
    dir,
    generations: path.join(dir, 'generations'),
    staging: path.join(dir, 'staging'),
    current: path.join(dir, 'current'),
    state: path.join(dir, 'state.json'),
    history: path.join(dir, 'history.jsonl'),
    lock: path.join(dir, 'lock'),
    undo: path.join(dir, 'undo.json'),
  }
}

export const imageName = (disk: { target: string; format: string }): string =>
  `${disk.target}.${disk.format}`
export const manifestName = (disk: { target: string }): string => `${disk.target}.manifest`

/** Makes the clone's folders, readable by their owner only (they hold guests' secrets), and their names durable. */
export async function makeFolders(layout: Layout): Promise<void> {
  const first = await mkdir(layout.generations, { recursive: true, mode: 0o700 })
  await mkdir(layout.staging, { recursive: true, mode: 0o700 })
  if (first === undefined) return
  for (let dir = layout.dir; ; dir = path.dirname(dir)) {
    await fsyncPath(dir)
    if (dir === path.dirname(first) || dir === path.dirname(dir)) return
  }
}

/** Recovery points under `dir`, by name; a missing folder has none. Anything else in there is not ours. */
export async function recoveryPointsIn(dir: string): Promise<string[]> {
  const names = await readdir(dir).catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return []
    throw error
  })
  return names.filter(isRecoveryPointId).sort()
}
