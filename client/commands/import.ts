// clone import: seeds a clone that has no generation yet; every attempt under the lock leaves a history line.

import path from 'node:path'
import { Cleanup } from '../../shared/cleanup.ts'
import { Failure } from '../../shared/failures.ts'
import { newAttempt, recordAttempt, type Watcher } from '../attempt.ts'
import type { CloneConfig } from '../config/effective.ts'
import { storeFailure } from '../copy/image.ts'
import { openFolder } from '../import-folder.ts'
import { importFolder } from '../import.ts'
import { ofStore } from '../store/failure.ts'
import { listGenerations, type Generation } from '../store/generation.ts'
import { checkBinding, checkRole, lockClone } from '../store/guard.ts'
import { layoutOf, makeFolders, type Layout } from '../store/layout.ts'
import { resolveOwnership } from '../store/ownership.ts'
import { checkWritable } from '../store/room.ts'
import { readState } from '../store/state.ts'

export interface Imported {
  readonly clone: string
  readonly id: string
  readonly seq: number
  readonly dir: string
  readonly disks: Generation['disks']
}

/** Imports a folder into a clone without generations; every attempt under the lock leaves a history line. @throws Failure */
export async function importCommand(
  clone: CloneConfig,
  { folder, adopt }: { folder: string; adopt: boolean },
  signal: AbortSignal,
  watcher: Watcher,
): Promise<Imported> {
  await using cleanup = new Cleanup()
  const layout = layoutOf(clone.dir)
  // Looked at first: a wrong folder must not make a clone.
  const opened = await openFolder(path.resolve(folder), cleanup)
  checkDomain(clone, opened.generation, adopt)
  checkNoDevice(clone, opened.generation)
  const ownership = await resolveOwnership(clone.ownership, clone.name)
  try {
    await makeFolders(layout)
    cleanup.defer(lockClone(layout, 'import'))
  } catch (error) {
    throw storeFailure(layout.dir, error)
  }
  // What is refused here was no attempt, and says nothing of the clone.
  const state = await readState(layout)
  checkRole(layout, state)
  await checkEmpty(clone, layout)
  checkBinding(layout, state.bound, opened.generation.source, adopt)

  const attempt = newAttempt()
  try {
    await checkWritable(layout, ownership)
    const { seq, dir } = await importFolder(layout, opened, attempt, ownership, signal, watcher)
    await recordAttempt(layout, attempt, 'imported')
    const { recoveryPoint, disks } = opened.generation
    return { clone: clone.name, id: recoveryPoint.id, seq, dir, disks }
  } catch (thrown) {
    const failure = ofStore(clone.dir, thrown)
    if (attempt.seq === undefined)
      await recordAttempt(layout, attempt, 'failed', failure).catch(() => undefined)
    throw failure
  }
}

function checkDomain({ name, domain }: CloneConfig, generation: Generation, adopt: boolean): void {
  if (adopt || generation.domain === domain) return
  throw new Failure(
    'UNSAFE',
    `the folder is of domain ${generation.domain}, but the clone ${name} is of domain ${domain}`,
    { remedy: 'name the right clone; if the domain was only renamed: clone import --adopt' },
  )
}

function checkNoDevice({ devices }: CloneConfig, { disks }: Generation): void {
  const kept = disks.find(({ target }) => devices.has(target))
  if (kept)
    throw new Failure(
      'UNSAFE',
      `disk ${kept.target} is kept on the block device ${devices.get(kept.target) ?? ''}; an import does not write to those`,
      { remedy: 'pull instead, or take device out of the configuration' },
    )
}

/** @throws Failure UNSAFE when the clone has any generation, also one that cannot be read */
async function checkEmpty(clone: CloneConfig, layout: Layout): Promise<void> {
  const found = await listGenerations(layout.dir)
  const [first] = found
  if (first)
    throw new Failure(
      'UNSAFE',
      `${layout.dir} has a generation already, ${first.id}; an import only seeds a clone that has none`,
      { remedy: `pull instead: clone pull ${clone.name}` },
    )
}
