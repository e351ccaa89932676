// Every kind of store, held to the same behaviours. A program, run as built: node dist/test/store/conformance-run.js [KIND [BEHAVIOUR…]]

import t, { type Test } from 'tap'
import { mkdir } from 'node:fs/promises'
import path from 'node:path'
import { aDevice, aMedium, type FileSystem } from '../client/medium.ts'
import { conforms, type Kind } from './conformance.ts'

const MIB = 1024 * 1024

async function storeOn(t: Test, type: FileSystem): Promise<string> {
  const store = path.join(await aMedium(t, type, 320), 'store')
  await mkdir(store)
  return store
}

const KINDS: readonly Kind[] = [
  {
    name: 'reflink on XFS',
    settings: ['generations: reflink'],
    pullsRolledBack: true,
    store: t => storeOn(t, 'xfs'),
  },
  {
    name: 'copy on ext4',
    settings: ['generations: copy'],
    pullsRolledBack: true,
    store: t => storeOn(t, 'ext4'),
  },
  {
    name: 'in place on ext4',
    settings: ['generations: in-place'],
    pullsRolledBack: false,
    store: t => storeOn(t, 'ext4'),
  },
  {
    name: 'in place on a block device',
    settings: [],
    pullsRolledBack: false,
    store: t => storeOn(t, 'ext4'),
    device: async t => [`disks: { vda: { device: ${await aDevice(t, 16 * MIB)} } }`],
  },
]

t.setTimeout(600_000)
const [only, ...parts] = process.argv.slice(2)
if (only !== undefined && !KINDS.some(({ name }) => name === only))
  throw new Error(`no kind of store is called ${only}`)
for (const kind of KINDS) if (only === undefined || only === kind.name) conforms(t, kind, parts)
