// A domain's XML as a tree: its disks, and whether each can be exported. Never regular expressions.

import type { Document, Element } from '@xmldom/xmldom'
import { Failure } from '../../shared/failures.ts'
import { isName } from '../../shared/names.ts'
import type { DiskFormat } from '../../shared/gate.ts'
import { attribute, child, children, parseXml as parse } from '../../shared/xml.ts'

export { attribute, child, children }

export interface DomainDisk {
  readonly target: string
  /** `disk`, `cdrom`, `floppy`, `lun`. */
  readonly device: string
  /** `file`, `block`, `network`, `volume`, … */
  readonly type: string
  /** Path of a file or block device; undefined for an empty drive or another kind. */
  readonly source: string | undefined
  readonly driver: string
  readonly readOnly: boolean
  readonly shareable: boolean
  readonly transient: boolean
  readonly encrypted: boolean
  readonly hasBacking: boolean
  /** libvirt shows a block job on this disk. */
  readonly hasJob: boolean
}

export interface DomainXml {
  readonly name: string
  readonly uuid: string
  readonly arch: string
  readonly machine: string
  readonly cpu: string
  readonly nvram: string | undefined
  readonly networks: readonly string[]
  readonly pools: readonly string[]
  readonly disks: readonly DomainDisk[]
}

/** Parses any XML from libvirt. @throws Failure SOURCE_REFUSED for what is not well-formed, too long or has a doctype */
export function parseXml(xml: string): Document {
  return parse('domain XML', xml, 'SOURCE_REFUSED')
}

function readDisk(disk: Element): DomainDisk {
  const source = child(disk, 'source')
  const target = attribute(child(disk, 'target'), 'dev') ?? ''
  if (!isName(target))
    throw new Failure('SOURCE_REFUSED', `domain XML refused: disk target ${JSON.stringify(target)}`)
  return {
    target,
    device: attribute(disk, 'device') ?? 'disk',
    type: attribute(disk, 'type') ?? 'file',
    source: attribute(source, 'file') ?? attribute(source, 'dev'),
    driver: attribute(child(disk, 'driver'), 'type') ?? 'raw',
    readOnly: child(disk, 'readonly') !== undefined,
    shareable: child(disk, 'shareable') !== undefined,
    transient: child(disk, 'transient') !== undefined,
    encrypted: child(disk, 'encryption') !== undefined || child(source, 'encryption') !== undefined,
    hasBacking: child(disk, 'backingStore', 'source') !== undefined,
    hasJob: child(disk, 'mirror') !== undefined,
  }
}

/** `<nvram>PATH</nvram>`, or since libvirt 8.5 `<nvram type='file'><source file='PATH'/></nvram>`. */
function nvramFile(nvram: Element | undefined): string | undefined {
  const plain = nvram?.textContent?.trim()
  return attribute(child(nvram, 'source'), 'file') ?? (plain === '' ? undefined : plain)
}

/** Reads what we need of a domain's XML. @throws Failure SOURCE_REFUSED */
export function readDomainXml(xml: string): DomainXml {
  const root = parseXml(xml).documentElement
  if (!root || root.nodeName !== 'domain')
    throw new Failure('SOURCE_REFUSED', 'domain XML refused: no <domain>')
  const devices = child(root, 'devices')
  const disks = devices ? children(devices, 'disk') : []
  const interfaces = devices ? children(devices, 'interface') : []
  const type = child(root, 'os', 'type')
  const unique = (names: (string | undefined)[]): string[] => [
    ...new Set(names.filter(one => one !== undefined)),
  ]
  return {
    name: child(root, 'name')?.textContent ?? '',
    uuid: child(root, 'uuid')?.textContent ?? '',
    arch: attribute(type, 'arch') ?? '',
    machine: attribute(type, 'machine') ?? '',
    cpu: attribute(child(root, 'cpu'), 'mode') ?? child(root, 'cpu', 'model')?.textContent ?? '',
    nvram: nvramFile(child(root, 'os', 'nvram')),
    networks: unique(interfaces.map(one => attribute(child(one, 'source'), 'network'))),
    pools: unique(disks.map(one => attribute(child(one, 'source'), 'pool'))),
    disks: disks.map(readDisk),
  }
}

export type Exportability =
  | { readonly kind: 'export'; readonly format: DiskFormat; readonly base: string }
  /** Not exported and not in the way: excluded, a cdrom, a floppy, read-only. */
  | { readonly kind: 'leave'; readonly reason: string }
  /** A writable disk that cannot be part of a recovery point: the whole domain is refused. */
  | { readonly kind: 'refuse'; readonly reason: string; readonly remedy: string }

/** Whether a disk can be exported. @param excluded by source.yaml */
export function exportability(domain: string, disk: DomainDisk, excluded: boolean): Exportability {
  if (excluded) return { kind: 'leave', reason: 'excluded by source.yaml' }
  if (disk.device === 'cdrom' || disk.device === 'floppy')
    return { kind: 'leave', reason: `${disk.device} media is not cloned` }
  if (disk.readOnly) return { kind: 'leave', reason: 'read-only' }
  const exclude = `exclude it in source.yaml: domains.${domain}.disks.${disk.target}.exclude: true`
  const refuse = (reason: string, remedy = exclude): Exportability => ({
    kind: 'refuse',
    reason,
    remedy,
  })
  if (disk.device === 'lun') return refuse('a passed-through SCSI LUN cannot be snapshotted')
  if (disk.type !== 'file' && disk.type !== 'block')
    return refuse(`a disk of type ${disk.type} is not supported, only file and block`)
  if (disk.source === undefined) return refuse('it has no source')
  if (disk.shareable) return refuse('a shareable disk cannot be snapshotted')
  if (disk.transient) return refuse('a transient disk cannot be snapshotted')
  if (disk.encrypted) return refuse('an encrypted disk would get an overlay in plain text')
  if (disk.driver !== 'raw' && disk.driver !== 'qcow2')
    return refuse(`format ${disk.driver} is not supported, only raw and qcow2`)
  if (disk.hasBacking)
    return refuse(
      'it has a backing file, so its image alone is not a whole disk',
      `flatten it: virsh blockpull ${domain} ${disk.target} --wait; or, if ${disk.source} is a left-over overlay: clone-server recover ${domain} --merge-overlays ${disk.target}`,
    )
  return { kind: 'export', format: disk.driver, base: disk.source }
}
