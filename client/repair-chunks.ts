// Bad chunks set right: bytes are taken from wherever they can be had, and written only when they hash to the manifest's line.

import { createHash } from 'node:crypto'
import { open, type FileHandle } from 'node:fs/promises'
import { Cleanup } from '../shared/cleanup.ts'
import { NbdError } from '../shared/nbd/client.ts'
import { allOrFirstError } from './copy/copy.ts'
import type { BadPlace } from './copy/check.ts'
import { fill } from './copy/fill.ts'
import { storeFailure } from './copy/image.ts'
import { isMediumError } from './copy/medium.ts'
import { CHUNK_SIZE, chunkLength } from './plan.ts'
import type { SourceDisks } from './source/chunks.ts'
import type { Sound } from './store/generation.ts'
import { readDigests } from './store/manifest.ts'
import { viewOf, type FileRun, type View } from './store/view.ts'

/** A bad chunk of one disk, and what it must be. */
export interface Wanted extends BadPlace {
  readonly target: string
  /** Bytes. */
  readonly length: number
  /** The manifest's line; '' when that cannot be read, so that nothing can be accepted. */
  readonly digest: string
}

/** A chunk that stays bad, and why. */
export interface Lost extends Wanted {
  readonly reason: string
}

/** Fills `bytes` with what may be a chunk. @returns why it could not */
export type Supply = (wanted: Wanted, bytes: Uint8Array) => Promise<string | undefined>

/** Chunks asked for at once. */
const IN_FLIGHT = 8

/** What the manifest says of bad chunks. @param view of the generation they are bad in */
export function wantedOf(view: View, bad: readonly BadPlace[]): Wanted[] {
  const { target, size } = view.disk
  return bad.map(place => {
    const length = chunkLength(size, place.chunk)
    return { ...place, target, length, digest: digestIn(view.manifest, place.chunk) }
  })
}

function digestIn(manifest: number, chunk: number): string {
  try {
    return readDigests(manifest, chunk, 1)[0] ?? ''
  } catch (error) {
    if (isMediumError(error)) return ''
    throw error
  }
}

/**
 * Writes what `supply` has and what hashes to what is wanted to where it belongs; all of it is fsynced when this returns.
 * @returns those that stay bad. @throws Failure SPACE or STANDBY_IO with the path
 */
export async function mend(
  wanted: readonly Wanted[],
  supply: Supply,
  signal: AbortSignal,
  onMended: (bytes: number) => void,
): Promise<Lost[]> {
  const files = new Map<string, Promise<FileHandle>>()
  const fileOf = (file: string): Promise<FileHandle> => {
    const handle = files.get(file) ?? open(file, 'r+')
    files.set(file, handle)
    return handle
  }
  const lost: Lost[] = []
  const rest = wanted.values()
  let failed = false

  const worker = async (): Promise<void> => {
    const memory = Buffer.allocUnsafeSlow(CHUNK_SIZE)
    for (const one of rest) {
      if (failed) return
      signal.throwIfAborted()
      const bytes = memory.subarray(0, one.length)
      const reason =
        one.digest === ''
          ? 'its manifest line cannot be read'
          : ((await supply(one, bytes)) ?? (await accept(one, bytes)))
      if (reason === undefined) onMended(one.length)
      else lost.push({ ...one, reason })
    }
  }

  const accept = async (one: Wanted, bytes: Uint8Array): Promise<string | undefined> => {
    if (createHash('sha256').update(bytes).digest('hex') !== one.digest)
      return 'its bytes there are others now'
    try {
      const handle = await fileOf(one.file)
      for (let done = 0; done < bytes.length;)
        done += (await handle.write(bytes, done, bytes.length - done, one.byte + done)).bytesWritten
      return undefined
    } catch (error) {
      if (!isMediumError(error)) throw storeFailure(one.file, error)
      return `it cannot be written: ${(error as NodeJS.ErrnoException).code ?? ''}`
    }
  }

  await using cleanup = new Cleanup()
  // What was written counts, also when it was not all.
  cleanup.defer(() => syncAndClose(files))
  await allOrFirstError(
    Array.from({ length: IN_FLIGHT }, () => worker()),
    () => (failed = true),
  )
  return lost.sort((a, b) => (a.target === b.target ? a.chunk - b.chunk : 0))
}

async function syncAndClose(files: ReadonlyMap<string, Promise<FileHandle>>): Promise<void> {
  for (const [file, opened] of files) {
    const handle = await opened.catch(() => undefined)
    try {
      await handle?.sync()
    } catch (error) {
      throw storeFailure(file, error)
    } finally {
      await handle?.close()
    }
  }
}

/** Other generations of the clone that claim to have the same chunk elsewhere. Dispose of it after the last use. */
export function fromGenerations(
  generations: readonly Sound[],
  found: Sound,
): AsyncDisposable & { readonly supply: Supply } {
  const views = new Map<string, Promise<View[]>>()
  const viewsFor = (target: string): Promise<View[]> => {
    const opened = views.get(target) ?? openAll(generations, found, target)
    views.set(target, opened)
    return opened
  }
  return {
    async supply(wanted, bytes) {
      for (const view of await viewsFor(wanted.target)) {
        const run = placeIn(view, wanted)
        if (run && (await fill(run.fd, run.chunk, bytes)) && hashOf(bytes) === wanted.digest)
          return undefined
      }
      return 'no other generation has it'
    },
    async [Symbol.asyncDispose]() {
      for (const opened of views.values())
        for (const view of await opened) await view[Symbol.asyncDispose]()
    },
  }
}

const hashOf = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex')

/** Newest first: it is most like what is looked for. */
async function openAll(
  generations: readonly Sound[],
  found: Sound,
  target: string,
): Promise<View[]> {
  const views: View[] = []
  for (const other of [...generations].reverse()) {
    const disk = other.generation.disks.find(one => one.target === target)
    if (!disk || other.id === found.id) continue
    // A generation that cannot be opened has nothing to give.
    const view = await viewOf(generations, other, disk).catch(() => undefined)
    if (view) views.push(view)
  }
  return views
}

/** Where another generation has the chunk, if that is another place. */
function placeIn(view: View, { chunk, file, length, digest }: Wanted): FileRun | undefined {
  try {
    if (chunkLength(view.disk.size, chunk) !== length) return undefined
    if (readDigests(view.manifest, chunk, 1)[0] !== digest) return undefined
    const [run] = view.runs(chunk, 1)
    return run?.file === file ? undefined : run
  } catch {
    return undefined
  }
}

/** What the source has at the same place now. Errors of the connection end the repair. */
export function fromSource(disks: SourceDisks): Supply {
  return async ({ target, byte }, bytes) => {
    const connection = disks.get(target)
    if (connection === undefined || typeof connection === 'string')
      return `the source does not have it: ${connection ?? 'it was not asked'}`
    if (connection.size < byte + bytes.length)
      return `the source does not have it: its disk is ${connection.size} bytes long now`
    try {
      await connection.read(byte, bytes)
      return undefined
    } catch (error) {
      if (!(error instanceof NbdError) || error.fault !== 'REQUEST_FAILED') throw error
      return `the source cannot read it: ${error.message}`
    }
  }
}
