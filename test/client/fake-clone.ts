// A clone for tests of what reads and keeps generations: published as the product does it, with tiny images and no source.

import { createHash } from 'node:crypto'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import type { Test } from 'tap'
import { cloneConfig, type CloneConfig } from '../../client/config/effective.ts'
import { standbySchema } from '../../client/config/schema.ts'
import { CHUNK_SIZE, chunkCount, chunkLength } from '../../client/plan.ts'
import type { Generation } from '../../client/store/generation.ts'
import { layoutOf, makeFolders } from '../../client/store/layout.ts'
import { publish, seal } from '../../client/store/publish.ts'
import { parseConfig } from '../../shared/config.ts'

const HOST_ID = '6b0f2d7e-3b57-4c83-9e0c-2f1f0f4b6a01'
const DOMAIN_UUID = '0d3b9a52-7a0e-4a53-8f4e-6f0d6b2b7c11'

/** An empty clone `mydomain`, with the built-in settings. @param parent where the store is made */
export async function makeClone(
  t: Pick<Test, 'teardown'>,
  parent = tmpdir(),
): Promise<CloneConfig> {
  const dir = await mkdtemp(path.join(parent, 'nbd-clone-test-'))
  t.teardown(() => rm(dir, { recursive: true, force: true }))
  const text = `store: ${dir}\nsources: { a: { transport: unix } }\ndomains: { mydomain: { source: a } }\n`
  const clone = cloneConfig(parseConfig('standby.yaml', text, standbySchema), 'mydomain')
  await makeFolders(layoutOf(clone.dir))
  return clone
}

/** One hour after the other, so that the order of ids is that of seq. */
export const instantOf = (seq: number): Date => new Date(Date.UTC(2026, 10, 1, seq))
/** Ends with the seq in decimal digits. */
export const idOf = (seq: number): string =>
  `${instantOf(seq).toISOString().slice(0, 19).replaceAll(/[-:]/g, '')}Z-${String(seq).padStart(4, '0')}`

/** Publishes a generation whose disks are all alike. @param size of each disk, bytes. @returns its folder */
export async function publishOne(
  dir: string,
  seq: number,
  size = 4096,
  targets: readonly string[] = ['vda'],
): Promise<string> {
  const layout = layoutOf(dir)
  const staging = path.join(layout.staging, idOf(seq))
  await mkdir(staging)
  const image = Buffer.alloc(size, seq)
  const lines = Array.from({ length: chunkCount(size) }, (_, chunk) => {
    const at = chunk * CHUNK_SIZE
    return `${sha256(image.subarray(at, at + chunkLength(size, chunk)))}\n`
  })
  const manifest = lines.join('')
  for (const target of targets) {
    await writeFile(path.join(staging, `${target}.raw`), image)
    await writeFile(path.join(staging, `${target}.manifest`), manifest)
  }
  const digest = sha256(Buffer.from(manifest))
  const disks = targets.map(target => ({
    ...{ target, format: 'raw' as const, size, digest, layers: [] },
  }))
  await seal(layout, { ...generationOf(seq), disks })
  return publish(layout, idOf(seq))
}

const sha256 = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex')

export function generationOf(seq: number): Generation {
  const instant = instantOf(seq).toISOString()
  return {
    schema: 1,
    seq,
    domain: 'mydomain',
    source: { hostId: HOST_ID, domainUuid: DOMAIN_UUID, epoch: 0 },
    recoveryPoint: { id: idOf(seq), instant, consistency: 'quiesced', clockSkewMs: 0 },
    chunkSize: CHUNK_SIZE,
    disks: [],
    omitted: [],
    definition: { inactive: 'domain.xml', live: null },
    nvram: null,
    networks: [],
    pools: [],
    host: { libvirt: '9.0.0', qemu: '7.2.0', arch: 'x86_64', machine: 'q35', cpu: 'qemu64' },
    verified: { level: 'all', at: instant },
  }
}
