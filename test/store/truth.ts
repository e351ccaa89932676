// What a clone holds, compared with what its source had, by nothing of the program under test.

import { createHash } from 'node:crypto'
import { open, readdir, readFile, readlink } from 'node:fs/promises'
import path from 'node:path'
import type { Disks } from './changing-source.ts'

const CHUNK = 1024 * 1024
const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex')

/** What `generation.json` says that matters here. */
interface Described {
  readonly seq: number
  readonly recoveryPoint: { readonly id: string }
  readonly disks: readonly {
    readonly target: string
    readonly format: string
    readonly size: number
    readonly digest: string
  }[]
}

/** The generation that `current` shows; undefined when it is absent. */
export async function currentOf(cloneDir: string): Promise<string | undefined> {
  const link = await readlink(path.join(cloneDir, 'current')).catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  })
  return link && path.basename(link)
}

/** Recovery points of the published generations, by name. */
export async function generationsIn(cloneDir: string): Promise<string[]> {
  const names = await readdir(path.join(cloneDir, 'generations')).catch(() => [])
  return names.sort()
}

/** What is wrong with a generation that has every disk whole: its images, manifests and digests against the truth. */
export async function wrongIn(dir: string, known: ReadonlyMap<string, Disks>): Promise<string[]> {
  return compared(dir, known).catch((error: unknown) => [`${dir} cannot be read: ${String(error)}`])
}

async function compared(dir: string, known: ReadonlyMap<string, Disks>): Promise<string[]> {
  const text = await readFile(path.join(dir, 'generation.json'), 'utf8')
  const { recoveryPoint, disks } = JSON.parse(text) as Described
  const truth = known.get(recoveryPoint.id)
  if (!truth) return [`${recoveryPoint.id} is a recovery point that the source never had`]
  const wrong: string[] = []
  const targets = disks.map(({ target, format }) => `${target}.${format}`)
  const had = Object.entries(truth).map(([target, { format }]) => `${target}.${format}`)
  if (targets.sort().join() !== had.sort().join())
    wrong.push(`it has ${targets.join()}, the source had ${had.join()}`)
  for (const { target, format, size, digest } of disks) {
    const image = path.join(dir, `${target}.${format}`)
    const manifest = await readFile(path.join(dir, `${target}.manifest`))
    const lines = manifest.toString('latin1').split('\n').slice(0, -1)
    const bytes = await readImage(image, size)
    const expected = truth[target]?.content
    if (sha256(manifest) !== digest) wrong.push(`${target}: the digest is not its manifest's`)
    if (bytes.length !== size || size !== expected?.length)
      wrong.push(`${target}: ${bytes.length} bytes, ${size} described, ${expected?.length} had`)
    for (let at = 0; at < size; at += CHUNK) {
      const chunk = bytes.subarray(at, at + CHUNK)
      if (lines[at / CHUNK] !== sha256(chunk))
        wrong.push(`${target}: chunk ${at / CHUNK} differs from its manifest`)
      if (expected?.compare(chunk, 0, chunk.length, at, at + chunk.length) !== 0)
        wrong.push(`${target}: chunk ${at / CHUNK} differs from the source's`)
    }
  }
  return wrong
}

/** The image; a block device may be bigger than its disk. */
async function readImage(file: string, size: number): Promise<Buffer> {
  await using handle = await open(file)
  const stat = await handle.stat()
  const length = stat.isFile() ? stat.size : size
  const bytes = Buffer.alloc(length)
  const { bytesRead } = await handle.read(bytes, 0, length, 0)
  return bytes.subarray(0, bytesRead)
}
