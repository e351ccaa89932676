// QEMU's own block graph: the truth about which image a running domain writes to.

import { z } from 'zod'
import { nothing, type Monitor } from './monitor.ts'

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
  z.object({
    'io-status': z.string().optional(),
    inserted: z.object({ image }).optional(),
  }),
)
const queryNodes = z.array(z.object({ 'node-name': z.string(), drv: z.string(), file: z.string() }))
const queryJobs = z.array(
  z.object({
    device: z.string(),
    type: z.string(),
    ready: z.boolean(),
    status: z.string().optional(),
  }),
)
const queryStatus = z.object({ status: z.string() })

/** Image paths of one disk of a running domain, the one that takes the guest's writes first. */
export type Chain = readonly string[]

/** One block node, in a chain or not. */
export interface Node {
  readonly name: string
  /** `raw`, `qcow2`, or the protocol below: `file`, `host_device`. */
  readonly driver: string
  readonly file: string
}

export interface BlockJob {
  /** Job id: libvirt's is like `commit-vda-libvirt-4-format`. */
  readonly device: string
  readonly type: string
  readonly ready: boolean
}

/** QEMU writes `json:{…}` for a node whose options a plain path cannot say. */
export function plainPath(filename: string): string {
  if (!filename.startsWith('json:')) return filename
  const options: unknown = JSON.parse(filename.slice('json:'.length))
  const shape = z.union([
    z.object({ file: z.object({ filename: z.string() }) }).transform(one => one.file.filename),
    z.object({ filename: z.string() }).transform(one => one.filename),
  ])
  const found = shape.safeParse(options)
  return found.success ? found.data : filename
}

function chainOf(top: Image): Chain {
  const chain: string[] = []
  for (let at: Image | undefined = top; at; at = at['backing-image'])
    chain.push(plainPath(at.filename))
  return chain
}

/** The chains of all disks of a running domain (QMP query-block). @throws Failure SOURCE_REFUSED */
export async function readChains(monitor: Monitor): Promise<Chain[]> {
  const devices = await monitor.execute({ execute: 'query-block' }, queryBlock)
  return devices.flatMap(({ inserted }) => (inserted ? [chainOf(inserted.image)] : []))
}

/** QEMU's word for what the guest does: `running`, `paused`, `io-error`, … (QMP query-status). */
export async function readRunState(monitor: Monitor): Promise<string> {
  return (await monitor.execute({ execute: 'query-status' }, queryStatus)).status
}

/** The chains of the disks whose last write found no space, when QEMU has stopped the guest for such an error. */
export async function readStoppedForSpace(monitor: Monitor): Promise<Chain[]> {
  if ((await readRunState(monitor)) !== 'io-error') return []
  const devices = await monitor.execute({ execute: 'query-block' }, queryBlock)
  const full = devices.filter(device => device['io-status'] === 'nospace')
  return full.flatMap(({ inserted }) => (inserted ? [chainOf(inserted.image)] : []))
}

/** Every block node of a running domain, upper ones first (QMP query-named-block-nodes). */
export async function readNodes(monitor: Monitor): Promise<Node[]> {
  const nodes = await monitor.execute(
    { execute: 'query-named-block-nodes', arguments: { flat: true } },
    queryNodes,
  )
  return nodes.map(node => ({
    name: node['node-name'],
    driver: node.drv,
    file: plainPath(node.file),
  }))
}

/** Block jobs that QEMU runs for a domain (QMP query-block-jobs). */
export function readBlockJobs(monitor: Monitor): Promise<BlockJob[]> {
  return monitor.execute({ execute: 'query-block-jobs' }, queryJobs)
}

/** Closes the nodes of an image that is in no chain, format before protocol. @throws Failure when QEMU still uses one */
export async function dropNodes(monitor: Monitor, file: string): Promise<void> {
  const ours = (await readNodes(monitor)).filter(node => node.file === file)
  const isProtocol = (node: Node): number => (/^(file|host_device)$/.test(node.driver) ? 1 : 0)
  for (const node of ours.sort((a, b) => isProtocol(a) - isProtocol(b)))
    await monitor.execute(
      { execute: 'blockdev-del', arguments: { 'node-name': node.name } },
      nothing,
    )
}
