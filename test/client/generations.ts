// Generations made from buffers, as a pull would have staged them, and what a clone holds read back through its views.

import { createHash, randomBytes } from 'node:crypto'
import { closeSync, fsyncSync, openSync, readSync, truncateSync, writeSync } from 'node:fs'
import { mkdir, readlink, symlink, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { NOBODY } from '../../client/attempt.ts'
import type { Pool } from '../../client/copy/pool.ts'
import { CHUNK_SIZE } from '../../client/plan.ts'
import { publishInPlace } from '../../client/store/exchange.ts'
import { soundGenerations, type Generation, type Sound } from '../../client/store/generation.ts'
import { imageName, manifestName, type Layout } from '../../client/store/layout.ts'
import { recordName } from '../../client/store/record.ts'
import { readState } from '../../client/store/state.ts'
import { chainOf, viewOf } from '../../client/store/view.ts'
import { writeDurably } from '../../shared/host/durable.ts'

export const HOST = '6b0f2d7e-3b57-4c83-9e0c-2f1f0f4b6a01'
export const UUID = '0d3b9a52-7a0e-4a53-8f4e-6f0d6b2b7c11'
export const idOf = (seq: number): string => `20261120T0300${String(seq).padStart(2, '0')}Z-00a0`

const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex')

/** The chunks of a disk, the last one at its real length. */
export function chunksOf(content: Buffer): Buffer[] {
  return Array.from({ length: Math.ceil(content.length / CHUNK_SIZE) }, (_, at) =>
    content.subarray(at * CHUNK_SIZE, (at + 1) * CHUNK_SIZE),
  )
}

export interface Content {
  readonly format?: 'raw' | 'qcow2'
  readonly bytes: Buffer
  /** The block device that it lives on. */
  readonly device?: string
}
export type Contents = Readonly<Record<string, Content>>

/** A disk of `chunks` random MiB and `rest` bytes. */
export const aDisk = (chunks: number, rest = 0): Buffer => randomBytes(chunks * CHUNK_SIZE + rest)

/** The same disk with other bytes in some chunks; `null` zeroes one. */
export function changed(content: Buffer, ...at: (number | { zero: number })[]): Buffer {
  const copy = Buffer.from(content)
  for (const one of at)
    if (typeof one === 'number') copy.set(randomBytes(4096), one * CHUNK_SIZE + 8192)
    else copy.fill(0, one.zero * CHUNK_SIZE, Math.min((one.zero + 1) * CHUNK_SIZE, copy.length))
  return copy
}

export function generationOf(seq: number, contents: Contents): Generation {
  return {
    schema: 1,
    seq,
    domain: 'mydomain',
    source: { hostId: HOST, domainUuid: UUID, epoch: 0 },
    recoveryPoint: {
      id: idOf(seq),
      instant: '2026-11-20T03:00:00.000Z',
      consistency: 'quiesced',
      clockSkewMs: 0,
    },
    chunkSize: CHUNK_SIZE,
    disks: Object.entries(contents).map(([target, { format = 'raw', bytes }]) => ({
      target,
      format,
      size: bytes.length,
      digest: sha256(Buffer.from(manifestOf(bytes))),
      layers: [],
    })),
    omitted: [],
    definition: { inactive: 'domain.xml', live: null },
    nvram: null,
    networks: [],
    pools: [],
    host: { libvirt: '9', qemu: '7', arch: 'x86_64', machine: 'q35', cpu: 'x' },
    verified: { level: 'all', at: '2026-11-20T03:01:00.000Z' },
  }
}

const manifestOf = (bytes: Buffer): string =>
  chunksOf(bytes)
    .map(chunk => `${sha256(chunk)}\n`)
    .join('')

/** Generations that a pull could build upon, newest first: the first one for files, whichever is on the device for devices. */
export type Basis = readonly { readonly id: string; readonly contents: Contents }[]

/**
 * Stages a generation: a disk that a basis has becomes a record against it, any other one a whole image.
 */
export async function stage(
  layout: Layout,
  seq: number,
  contents: Contents,
  basis: Basis = [],
): Promise<string> {
  const generation = generationOf(seq, contents)
  const dir = path.join(layout.staging, idOf(seq))
  await mkdir(dir)
  for (const disk of generation.disks) {
    const { bytes, device } = contents[disk.target] ?? { bytes: Buffer.alloc(0) }
    await writeDurably(path.join(dir, manifestName(disk)), manifestOf(bytes))
    const on = basis.find(({ contents }, age) => {
      const held = contents[disk.target]
      return (
        held &&
        (device === undefined
          ? age === 0 && (held.format ?? 'raw') === disk.format
          : held.device === device)
      )
    })
    const file = path.join(dir, on ? recordName(disk, on.id) : imageName(disk))
    if (!on && device !== undefined) await symlink(device, file)
    const held = chunksOf(on?.contents[disk.target]?.bytes ?? Buffer.alloc(0))
    const fd = openSync(file, !on && device !== undefined ? 'r+' : 'w')
    if (on || device === undefined) truncateSync(file, disk.size)
    for (const [at, chunk] of chunksOf(bytes).entries())
      if (!on || !held[at]?.equals(chunk)) writeSync(fd, chunk, 0, chunk.length, at * CHUNK_SIZE)
    fsyncSync(fd)
    closeSync(fd)
  }
  await writeFile(path.join(dir, 'domain.xml'), '<domain/>\n')
  await writeDurably(path.join(dir, 'generation.json'), `${JSON.stringify(generation)}\n`)
  return dir
}

/** Publishes what is staged. */
export async function publishStaged(
  layout: Layout,
  seq: number,
  pool: Pool,
  signal: AbortSignal = new AbortController().signal,
): Promise<void> {
  const after = { ...(await readState(layout)), lastSeq: seq }
  await publishInPlace(layout, idOf(seq), after, { pool, signal, watcher: NOBODY })
}

/** Pulls in place, one after another: each generation is staged upon those before it. @param all of seq 1, 2, … */
export async function publishAll(
  layout: Layout,
  all: readonly Contents[],
  pool: Pool,
): Promise<void> {
  const basis: { id: string; contents: Contents }[] = []
  for (const [at, contents] of all.entries()) {
    await stage(layout, at + 1, contents, basis)
    await publishStaged(layout, at + 1, pool)
    basis.unshift({ id: idOf(at + 1), contents })
  }
}

/** A disk's bytes as its view gives them. */
export async function bytesOf(layout: Layout, seq: number, target: string): Promise<Buffer> {
  const sound = await soundGenerations(layout.dir)
  const found = soundOf(sound, seq)
  const disk = found.generation.disks.find(one => one.target === target)
  if (!disk) throw new Error(`no disk ${target} in ${idOf(seq)}`)
  await using view = await viewOf(sound, found, disk)
  const bytes = Buffer.alloc(disk.size)
  const chunks = Math.ceil(disk.size / CHUNK_SIZE)
  let next = 0
  for (const { fd, chunk, count } of view.runs(0, chunks)) {
    if (chunk !== next) throw new Error(`chunk ${chunk} instead of ${next}`)
    next += count
    const [start, end] = [chunk * CHUNK_SIZE, Math.min(next * CHUNK_SIZE, disk.size)]
    readSync(fd, bytes, start, end - start, start)
  }
  if (next !== chunks) throw new Error(`${next} chunks instead of ${chunks}`)
  return bytes
}

/** How many files a disk of a generation is spread over: 1 is a whole image. */
export async function depthOf(layout: Layout, seq: number, target: string): Promise<number> {
  const sound = await soundGenerations(layout.dir)
  return (await chainOf(sound, soundOf(sound, seq), target)).length
}

export function soundOf(sound: readonly Sound[], seq: number): Sound {
  const found = sound.find(one => one.generation.seq === seq)
  if (!found) throw new Error(`no generation ${seq}`)
  return found
}

/** The seq of the generation that `current` shows. */
export async function currentOf(layout: Layout): Promise<number | undefined> {
  const link = await readlink(layout.current).catch(() => undefined)
  const sound = await soundGenerations(layout.dir)
  return sound.find(({ id }) => link === `generations/${id}`)?.generation.seq
}
