// The manifests of a generation against the digests in its generation.json: what can be checked without reading an image.

import { createHash } from 'node:crypto'
import { readFile, stat } from 'node:fs/promises'
import path from 'node:path'
import { Failure } from '../../shared/failures.ts'
import { chunkCount } from '../plan.ts'
import type { Sound } from './generation.ts'
import { manifestName } from './layout.ts'
import { LINE, manifestDigest } from './manifest.ts'

/** Up to here a manifest is read at once, which for many small ones is faster than a stream. */
const SMALL = 1024 * 1024

/** One sentence for each manifest that is missing, unreadable, of a wrong length, or another one; each names its file. */
export async function badManifests({ dir, generation }: Sound): Promise<string[]> {
  const problems = await Promise.all(
    generation.disks.map(async disk => {
      const file = path.join(dir, manifestName(disk))
      try {
        const digest = await digestOf(file, chunkCount(disk.size))
        return digest === disk.digest
          ? undefined
          : `${file}: not the manifest that generation.json names`
      } catch (error) {
        if (error instanceof Failure) return error.message
        const { code = String(error) } = error as NodeJS.ErrnoException
        return `${file}: ${code === 'ENOENT' ? 'missing' : `unreadable: ${code}`}`
      }
    }),
  )
  return problems.filter(problem => problem !== undefined)
}

/** @returns SHA-256, hex. @throws Failure INTEGRITY when its length is not `chunks` lines */
async function digestOf(file: string, chunks: number): Promise<string> {
  if (chunks * LINE > SMALL || (await stat(file)).size !== chunks * LINE)
    return manifestDigest(file, chunks)
  return createHash('sha256')
    .update(await readFile(file))
    .digest('hex')
}
