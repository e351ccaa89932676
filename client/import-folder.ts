// A folder to be imported, which anybody may have written: opened once, each file checked to be what it must be.

import { isUtf8 } from 'node:buffer'
import { constants } from 'node:fs'
import { open, type FileHandle } from 'node:fs/promises'
import path from 'node:path'
import type { Cleanup } from '../shared/cleanup.ts'
import { Failure } from '../shared/failures.ts'
import { MAX_XML } from '../shared/xml.ts'
import { storeFailure } from './copy/image.ts'
import { CHUNK_SIZE, chunkCount } from './plan.ts'
import { checkDefinitions } from './source/definition.ts'
import { generationSchema, type Generation } from './store/generation.ts'
import { imageName, manifestName } from './store/layout.ts'
import { LINE } from './store/manifest.ts'
import type { Disk } from './store/view.ts'

/** As from a source. */
const MAX_DISK = 64 * 1024 ** 4
/** Longer than with every network and pool that a domain can sensibly name. */
const MAX_JSON = 16 * 1024 * 1024
const MAX_NVRAM = 64 * 1024 * 1024
const MAX_DISKS = 1000

export interface ImportedDisk {
  readonly disk: Disk
  /** The image's path, for messages. */
  readonly file: string
  readonly image: FileHandle
  readonly manifest: FileHandle
}
export interface ImportFolder {
  readonly generation: Generation
  readonly disks: readonly ImportedDisk[]
  /** Name -> content: domain.xml, live.xml, nvram.fd, as far as generation.json names them. */
  readonly definitions: ReadonlyMap<string, Buffer>
}

/**
 * Opens all that generation.json names, and nothing else. What is opened stays open until `cleanup`, so that it cannot be
 * exchanged between two looks. @throws Failure USAGE when it is no such folder; INTEGRITY when it does not fit together
 */
export async function openFolder(folder: string, cleanup: Cleanup): Promise<ImportFolder> {
  const opened = (name: string) => openPlain(path.join(folder, name), cleanup)
  const content = async (name: string, most: number): Promise<Buffer> => {
    const { handle, size } = await opened(name)
    if (size > most)
      throw new Failure('INTEGRITY', `${path.join(folder, name)}: ${size} bytes; at most ${most}`)
    return handle.readFile()
  }

  const file = path.join(folder, 'generation.json')
  const generation = parseGeneration(file, await content('generation.json', MAX_JSON))
  const definitions = new Map<string, Buffer>()
  const { inactive, live } = generation.definition
  for (const name of [inactive, live])
    if (name !== null) definitions.set(name, await content(name, MAX_XML))
  checkXml(folder, generation, definitions)
  const { nvram } = generation
  if (nvram !== null) definitions.set(nvram, await content(nvram, MAX_NVRAM))

  const disks: ImportedDisk[] = []
  for (const disk of generation.disks) {
    const image = await opened(imageName(disk))
    const manifest = await opened(manifestName(disk))
    checkLength(path.join(folder, imageName(disk)), image.size, disk.size)
    checkLength(path.join(folder, manifestName(disk)), manifest.size, chunkCount(disk.size) * LINE)
    disks.push({
      disk,
      file: path.join(folder, imageName(disk)),
      image: image.handle,
      manifest: manifest.handle,
    })
  }
  return { generation, disks, definitions }
}

/** As strict as with a source. */
function checkXml(
  folder: string,
  { definition, domain, source, networks, pools }: Generation,
  definitions: ReadonlyMap<string, Buffer>,
): void {
  const text = (name: string | null): string => {
    const bytes = name === null ? undefined : definitions.get(name)
    if (bytes && !isUtf8(bytes))
      throw new Failure('INTEGRITY', `${path.join(folder, name ?? '')} is not UTF-8`)
    return bytes?.toString() ?? ''
  }
  const inactiveXml = text(definition.inactive)
  if (inactiveXml.trim() === '')
    throw new Failure('INTEGRITY', `${path.join(folder, definition.inactive)} is empty`)
  checkDefinitions(
    { inactiveXml, liveXml: text(definition.live), networks, pools },
    { domain, uuid: source.domainUuid },
    folder,
    'INTEGRITY',
  )
}

function parseGeneration(file: string, bytes: Buffer): Generation {
  const refuse = (why: string, cause?: unknown): never => {
    throw new Failure('INTEGRITY', `${file}: ${why}`, { cause })
  }
  let json: unknown
  try {
    json = JSON.parse(bytes.toString())
  } catch (error) {
    return refuse('not JSON', error)
  }
  const { data, error } = generationSchema.safeParse(json)
  const issue = error?.issues[0]
  if (!data) return refuse(`${issue?.path.join('.') ?? ''}: ${issue?.message ?? 'not understood'}`)
  if (data.chunkSize !== CHUNK_SIZE)
    return refuse(`its chunks are ${data.chunkSize} bytes; this version takes ${CHUNK_SIZE}`)
  if (data.disks.length > MAX_DISKS) return refuse(`${data.disks.length} disks`)
  if (new Set(data.disks.map(({ target }) => target)).size < data.disks.length)
    return refuse('it names a disk twice')
  const large = data.disks.find(({ size }) => size > MAX_DISK)
  if (large) return refuse(`disk ${large.target} is over 64 TiB`)
  return data
}

function checkLength(file: string, found: number, wanted: number): void {
  if (found !== wanted)
    throw new Failure('INTEGRITY', `${file}: ${found} bytes, but generation.json needs ${wanted}`)
}

/** No symlink, which could lead to any file of this host; no device or pipe, which could keep us waiting. */
async function openPlain(
  file: string,
  cleanup: Cleanup,
): Promise<{ handle: FileHandle; size: number }> {
  let handle: FileHandle
  try {
    handle = await open(file, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ELOOP' || code === 'ENXIO') throw notPlain(file, error)
    if (code === 'ENOENT' || code === 'ENOTDIR')
      throw new Failure('USAGE', `there is no ${file}`, {
        cause: error,
        remedy: 'name a folder that clone export made',
      })
    throw storeFailure(file, error)
  }
  cleanup.defer(() => handle.close())
  const found = await handle.stat()
  if (!found.isFile()) throw notPlain(file)
  return { handle, size: found.size }
}

const notPlain = (file: string, cause?: unknown): Failure =>
  new Failure('UNSAFE', `${file} is not a plain file`, { cause })
