// The commit of a generation: everything fsynced, then one rename from staging/ to generations/.

import { rename, writeFile } from 'node:fs/promises'
import path from 'node:path'
import type { SessionInfo } from '../../shared/gate.ts'
import { fsyncPath, writeDurably } from '../../shared/host/durable.ts'
import { generationSchema, type Generation } from './generation.ts'
import type { Layout } from './layout.ts'
import { ownGeneration, PRIVATE, type Ownership } from './ownership.ts'

/** Writes the definitions beside the images: domain.xml, and live.xml and nvram.fd when there are any. */
export async function writeDefinitions(dir: string, info: SessionInfo): Promise<void> {
  const write = async (name: string, content: string | Buffer): Promise<void> => {
    const file = path.join(dir, name)
    await writeFile(file, content, { mode: 0o600 })
    await fsyncPath(file)
  }
  await write('domain.xml', info.inactiveXml)
  if (info.liveXml !== '') await write('live.xml', info.liveXml)
  if (info.nvram !== null) await write('nvram.fd', Buffer.from(info.nvram, 'base64'))
}

/** Completes staging/<id>, whose images and manifests are fsynced already: generation.json, owner and mode, durably. */
export async function seal(
  layout: Layout,
  generation: Generation,
  ownership: Ownership = PRIVATE,
): Promise<void> {
  const staged = path.join(layout.staging, generation.recoveryPoint.id)
  const text = JSON.stringify(generationSchema.parse(generation), undefined, 2)
  // This fsyncs staging/<id>/ too, with the names of everything in it.
  await writeDurably(path.join(staged, 'generation.json'), `${text}\n`, 0o600)
  await ownGeneration(staged, ownership)
}

/**
 * Publishes staging/<id>, in which all is whole and sealed. When this returns the generation exists, also after a power cut;
 * when it throws before the rename, it does not. @returns its folder
 */
export async function publish(layout: Layout, id: string): Promise<string> {
  const published = path.join(layout.generations, id)
  await rename(path.join(layout.staging, id), published)
  await fsyncPath(layout.generations)
  await fsyncPath(layout.staging)
  return published
}
