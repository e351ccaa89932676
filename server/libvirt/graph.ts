// QEMU's own block graph: the truth about which image a running domain writes to.

import { z } from 'zod'
import type { Virsh } from './virsh.ts'

interface Image {
  readonly filename: string
  readonly 'backing-image'?: Image | undefined
}

const image: z.ZodType<Image> = z.object({
  filename: z.string(),
  get 'backing-image'() {
    return image.optional()
  },
})

const queryBlock = z.array(
  z.object({ qdev: z.string().optional(), inserted: z.object({ image }).optional() }),
)
const queryNodes = z.array(z.object({ 'node-name': z.string().optional(), file: z.string() }))
const queryJobs = z.array(
  z.object({
    device: z.string(),
    type: z.string(),
    ready: z.boolean(),
    status: z.string().optional(),
  }),
)

/** Image paths of one disk of a running domain, the one that takes the guest's writes first. */
export type Chain = readonly string[]

export interface BlockJob {
  /** libvirt's job id, e.g. `commit-vda-libvirt-4-format`. */
  readonly device: string
  readonly type: string
  readonly ready: boolean
}

/** QEMU writes `json:{…}` for a node whose options a plain path cannot say. */
function plainPath(filename: string): string {
  if (!filename.startsWith('json:')) return filename
  const options: unknown = JSON.parse(filename.slice('json:'.length))
  const shape = z.union([
    z.object({ file: z.object({ filename: z.string() }) }).transform(one => one.file.filename),
    z.object({ filename: z.string() }).transform(one => one.filename),
  ])
  const found = shape.safeParse(options)
  return found.success ? found.data : filename
}

/** The chains of all disks of a running domain (QMP query-block). @throws Failure SOURCE_REFUSED */
export async function readChains(virsh: Virsh, domain: string): Promise<Chain[]> {
  const devices = await virsh.qmp(domain, { execute: 'query-block' }, queryBlock)
  return devices.flatMap(({ inserted }) => {
    if (!inserted) return []
    const chain: string[] = []
    for (let at: Image | undefined = inserted.image; at; at = at['backing-image'])
      chain.push(plainPath(at.filename))
    return [chain]
  })
}

/** Every file that a running domain has as a block node, in a chain or not (QMP query-named-block-nodes). */
export async function readNodeFiles(virsh: Virsh, domain: string): Promise<Set<string>> {
  const nodes = await virsh.qmp(
    domain,
    { execute: 'query-named-block-nodes', arguments: { flat: true } },
    queryNodes,
  )
  return new Set(nodes.map(node => plainPath(node.file)))
}

/** Block jobs that QEMU runs for a domain (QMP query-block-jobs). */
export function readBlockJobs(virsh: Virsh, domain: string): Promise<BlockJob[]> {
  return virsh.qmp(domain, { execute: 'query-block-jobs' }, queryJobs)
}
