// A disk put back onto its base in libvirt's XMLs, as trees: in a domain's definition, in the XML inside a managed save image,
// and in the status XML from which libvirt learns, when it starts, what runs.

import { XMLSerializer, type Document, type Element } from '@xmldom/xmldom'
import { Failure } from '../../shared/failures.ts'
import { attribute, child, children, parseXml } from './domain-xml.ts'

export interface OverlaidDisk {
  readonly target: string
  readonly base: string
  readonly overlay: string
}

const sourceOf = (disk: Element): string | undefined => {
  const source = child(disk, 'source')
  return attribute(source, 'file') ?? attribute(source, 'dev')
}

const targetOf = (disk: Element): string | undefined => attribute(child(disk, 'target'), 'dev')

function domainOf(document: Document): Element {
  const root = document.documentElement
  const domain = root?.nodeName === 'domain' ? root : child(root ?? undefined, 'domain')
  if (domain) return domain
  throw new Failure('SOURCE_REFUSED', 'libvirt XML refused: no <domain>')
}

function disksOf(domain: Element): Element[] {
  const devices = child(domain, 'devices')
  return devices ? children(devices, 'disk') : []
}

function overlaid(domain: Element, disks: readonly OverlaidDisk[]): [Element, OverlaidDisk][] {
  return disksOf(domain).flatMap((element): [Element, OverlaidDisk][] => {
    const disk = disks.find(one => one.target === targetOf(element))
    return disk && sourceOf(element) === disk.overlay ? [[element, disk]] : []
  })
}

/**
 * The XML with every disk that names its overlay back on its base, the way `original` (taken before the snapshot) had it.
 * @returns undefined when no disk names an overlay
 * @throws Failure SOURCE_REFUSED when the original does not know the disk
 */
export function definitionOnBase(
  xml: string,
  original: string,
  disks: readonly OverlaidDisk[],
): string | undefined {
  const document = parseXml(xml)
  const before = disksOf(domainOf(parseXml(original)))
  const found = overlaid(domainOf(document), disks)
  if (found.length === 0) return undefined
  for (const [element, { target }] of found) {
    const old = before.find(one => targetOf(one) === target)
    const oldSource = child(old, 'source')
    if (!old || !oldSource)
      throw new Failure('SOURCE_REFUSED', `the definition before the session had no disk ${target}`)
    element.setAttribute('type', attribute(old, 'type') ?? 'file')
    const format = attribute(child(old, 'driver'), 'type')
    if (format !== undefined) child(element, 'driver')?.setAttribute('type', format)
    replace(element, 'source', document.importNode(oldSource, true))
    for (const store of children(element, 'backingStore')) element.removeChild(store)
  }
  return new XMLSerializer().serializeToString(document)
}

function replace(element: Element, tag: string, by: Element): void {
  const old = child(element, tag)
  if (old) element.replaceChild(by, old)
}

/**
 * The XML with the overlaid disks on the images that their `<backingStore>` names, which must be their bases, and without their
 * block jobs. In a status XML the backing store carries what else libvirt must know, the node names of the base.
 * @returns undefined when no disk names an overlay
 * @throws Failure SOURCE_REFUSED when a disk's backing store is not its base
 */
export function onBackingStore(xml: string, disks: readonly OverlaidDisk[]): string | undefined {
  const document = parseXml(xml)
  const found = overlaid(domainOf(document), disks)
  if (found.length === 0) return undefined
  for (const [element, { target, base }] of found) {
    const store = child(element, 'backingStore')
    const source = child(store, 'source')
    const path = attribute(source, 'file') ?? attribute(source, 'dev')
    if (!store || !source || path !== base)
      throw new Failure(
        'SOURCE_REFUSED',
        `libvirt's XML of disk ${target} does not say that it lies on ${base}`,
      )
    element.setAttribute('type', attribute(store, 'type') ?? 'file')
    const format = attribute(child(store, 'format'), 'type')
    if (format !== undefined) child(element, 'driver')?.setAttribute('type', format)
    const index = attribute(store, 'index')
    if (index !== undefined) source.setAttribute('index', index)
    replace(element, 'source', source)
    replace(element, 'backingStore', document.createElement('backingStore'))
    for (const mirror of children(element, 'mirror')) element.removeChild(mirror)
  }
  const targets = found.map(([, disk]) => disk.target)
  const jobs = child(document.documentElement ?? undefined, 'blockjobs')
  for (const job of jobs ? children(jobs, 'blockjob') : [])
    if (targets.includes(attribute(child(job, 'disk'), 'dst') ?? '')) jobs?.removeChild(job)
  return new XMLSerializer().serializeToString(document)
}

/** The process that a status XML is about. */
export function statusPid(xml: string): number {
  return Number(attribute(parseXml(xml).documentElement ?? undefined, 'pid'))
}
