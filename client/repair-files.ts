// Files of a generation set right without the source: manifests from sound bytes, and images of the wrong length or gone.

import { createHash } from 'node:crypto'
import { lstat, open, rename, rm, stat } from 'node:fs/promises'
import path from 'node:path'
import { fsyncPath } from '../shared/host/durable.ts'
import { isMediumError } from './copy/medium.ts'
import { fill } from './copy/fill.ts'
import { chunkCount, chunkLength } from './plan.ts'
import type { Sound } from './store/generation.ts'
import { imageName } from './store/layout.ts'
import { manifestDigest, readDigests, writeDigests } from './store/manifest.ts'
import { recordsOf } from './store/record.ts'
import { chainOf, viewOf, type Disk, type Link, type View } from './store/view.ts'
import { manifestProblem, type Reader } from './verify.ts'

/**
 * Writes anew each manifest that a disk needs and that is not what its generation.json says, from the bytes that it is
 * about: only when it then has the very digest that generation.json names. @returns the files written
 */
export async function mendManifests(found: Sound, disk: Disk, reader: Reader): Promise<string[]> {
  const { generations, signal } = reader
  const chain = await chainOf(generations, found, disk.target)
  const written: string[] = []
  // From the whole image on: a record is told from what it is against.
  for (const [at, link] of [...chain.entries()].reverse()) {
    signal.throwIfAborted()
    if ((await manifestProblem(link.manifest, link.disk)) === undefined) continue
    if (await rewrite(link, chain[at + 1], reader)) written.push(link.manifest)
  }
  return written
}

async function rewrite(link: Link, next: Link | undefined, reader: Reader): Promise<boolean> {
  const { disk, manifest } = link
  const beside = `${manifest}.new`
  await using before = next && (await viewOf(reader.generations, next.found, next.disk))
  const lines = await open(beside, 'w+', 0o600)
  try {
    const image = await open(link.file, 'r')
    const old = await open(manifest, 'r').catch(() => undefined)
    try {
      for (let chunk = 0; chunk < chunkCount(disk.size); chunk++) {
        reader.signal.throwIfAborted()
        const own = await readChunk(image.fd, disk.size, chunk)
        const digest = before
          ? await digestInRecord(own, before, disk, chunk, old?.fd)
          : own && hashOf(own)
        if (digest === undefined) return false
        writeDigests(lines.fd, chunk, [digest])
      }
    } finally {
      await old?.close()
      await image.close()
    }
    if ((await manifestDigest(beside, chunkCount(disk.size))) !== disk.digest) return false
    await lines.sync()
    await rename(beside, manifest)
    await fsyncPath(path.dirname(manifest))
    return true
  } finally {
    await lines.close()
    await rm(beside, { force: true })
  }
}

/**
 * A chunk of a disk that is kept as a record lies in the record, or where the record is against; the line that is left
 * tells which. When it is neither's, the record counts if it has anything there. The digest of the whole judges in the end.
 */
async function digestInRecord(
  own: Buffer | undefined,
  before: View,
  disk: Disk,
  chunk: number,
  old: number | undefined,
): Promise<string | undefined> {
  const inRecord = own && hashOf(own)
  const same = chunkLength(before.disk.size, chunk) === chunkLength(disk.size, chunk)
  const run = same ? before.runs(chunk, 1)[0] : undefined
  const bytes = run && (await readChunk(run.fd, before.disk.size, chunk))
  const there = bytes && hashOf(bytes)
  const line = old === undefined ? '' : lineOf(old, chunk)
  if (line !== '' && (line === inRecord || line === there)) return line
  const isHole = own?.every(byte => byte === 0) ?? true
  return isHole ? (there ?? inRecord) : inRecord
}

/** Undefined when the medium does not give it. */
async function readChunk(fd: number, size: number, chunk: number): Promise<Buffer | undefined> {
  const bytes = Buffer.allocUnsafe(chunkLength(size, chunk))
  return (await fill(fd, chunk, bytes)) ? bytes : undefined
}

const hashOf = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex')

function lineOf(manifest: number, chunk: number): string {
  try {
    return readDigests(manifest, chunk, 1)[0] ?? ''
  } catch (error) {
    if (isMediumError(error)) return ''
    throw error
  }
}

/** Makes an image that is gone, as one hole, and gives one of the wrong length its length. @returns the files changed */
export async function mendImage(
  found: Sound,
  disk: Disk,
  generations: readonly Sound[],
): Promise<string[]> {
  const file = path.join(found.dir, imageName(disk))
  const link = await lstat(file).catch(() => undefined)
  if (!link) {
    if ((await recordsOf(found.dir, disk)).length > 0) return mendLength()
    const image = await open(file, 'wx', 0o600)
    await image.truncate(disk.size)
    await image.close()
    await fsyncPath(found.dir)
    return [file]
  }
  return mendLength()

  async function mendLength(): Promise<string[]> {
    const [own] = await chainOf(generations, found, disk.target)
    const is = own && (await stat(own.file).catch(() => undefined))
    if (!is?.isFile() || is.size === disk.size) return []
    const image = await open(own?.file ?? '', 'r+')
    await image.truncate(disk.size)
    await image.close()
    return [own?.file ?? '']
  }
}
