// clone verify --manifests-only: every manifest of a clone against generation.json, in a moment. Reads no image, takes no lock.

import { access } from 'node:fs/promises'
import type { CloneConfig } from '../config/effective.ts'
import { chooseGeneration } from '../store/choose.ts'
import { isSound, listGenerations, type Found } from '../store/generation.ts'
import { badManifests } from '../store/manifests.ts'

export interface VerifiedManifests {
  readonly clone: string
  readonly generations: readonly {
    readonly id: string
    /** Unset for a broken one. */
    readonly seq?: number
    /** How many manifests were looked at. */
    readonly manifests: number
    /** One sentence for each bad file, which it names. */
    readonly bad: readonly string[]
  }[]
}

/** @param which one generation; all when undefined. @throws Failure USAGE, INTEGRITY for a broken one that was named */
export async function verifyManifestsCommand(
  clone: CloneConfig,
  which: string | undefined,
): Promise<VerifiedManifests> {
  const found = await listGenerations(clone.dir)
  // Without any, the answer is the same sentence as for one that is not there.
  const wanted =
    which === undefined && found.length > 0 ? found : [chooseGeneration(clone.name, found, which)]
  const generations: VerifiedManifests['generations'][number][] = []
  for (const one of wanted) {
    const bad = isSound(one) ? await badManifests(one) : [one.broken]
    // One that a prune removed meanwhile is not bad.
    if (bad.length > 0 && !(await isThere(one))) continue
    generations.push({
      id: one.id,
      ...(one.generation && { seq: one.generation.seq }),
      manifests: one.generation?.disks.length ?? 0,
      bad,
    })
  }
  return { clone: clone.name, generations }
}

async function isThere({ dir }: Found): Promise<boolean> {
  return access(dir).then(
    () => true,
    (error: unknown) => (error as NodeJS.ErrnoException).code !== 'ENOENT',
  )
}
