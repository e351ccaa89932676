// hook start: libvirt is about to start a domain, and waits until whoever reads its disks has stopped.

import { readdir, readlink, rm } from 'node:fs/promises'
import path from 'node:path'
import type { Readable } from 'node:stream'
import { setTimeout as delay } from 'node:timers/promises'
import { Failure } from '../../shared/failures.ts'
import { openersOf } from '../../shared/host/openers.ts'
import { isName } from '../../shared/names.ts'
import { readDomainXml } from '../libvirt/domain-xml.ts'
import { askServe } from '../serve/client.ts'

/** Together less than the script's own limit. */
const SERVE_PATIENCE_MS = 8_000
const READERS_PATIENCE_MS = 4_000

/**
 * Tells serve, which returns when its readers are gone. Where serve does not run, or hangs, nobody would end the readers
 * that it left, so they are ended here: their client must not take what the guest is changing for a copy.
 * @param xml the domain's XML as libvirt gives it to its hooks
 */
export async function announceStart(
  serveSocket: string,
  domain: string,
  xml: Readable,
): Promise<void> {
  const images = imagesIn(await xml.setEncoding('utf8').reduce((all, part) => `${all}${part}`, ''))
  try {
    await Promise.race([
      askServe(serveSocket, { role: 'hook' }, 'hook.start', { domain, images }),
      delay(SERVE_PATIENCE_MS, undefined, { ref: false }).then(() => {
        throw new Failure('SOURCE_UNREACHABLE', 'clone-server serve does not answer')
      }),
    ])
  } catch (error) {
    if (!(error instanceof Failure) || error.code !== 'SOURCE_UNREACHABLE') throw error
    await endLeftReaders(path.join(path.dirname(serveSocket), 'exports'), domain)
  }
}

/** A start must not depend on an XML that is not understood: its domain's name is told all the same. */
function imagesIn(xml: string): string[] {
  try {
    return readDomainXml(xml).disks.flatMap(disk => disk.source ?? [])
  } catch {
    return []
  }
}

/** A link that is left names what a connection of an ended serve may still read. @param exportsDir links by connection */
async function endLeftReaders(exportsDir: string, domain: string): Promise<void> {
  if (!isName(domain)) return
  for (const connection of await readdir(exportsDir).catch(() => [])) {
    const folder = path.join(exportsDir, connection, domain)
    for (const target of await readdir(folder).catch(() => [])) {
      const link = path.join(folder, target)
      const base = await readlink(link).catch(() => undefined)
      await rm(link, { force: true })
      if (base === undefined) continue
      await endReaders(base)
    }
  }
}

/** Kills what reads for sessions and has the image open, and returns when they have let go; a start waits no longer than that. */
async function endReaders(base: string): Promise<void> {
  // Loaded only here: a start waits for this program, and mostly there is nothing to end.
  const { isReader, killIfThere } = await import('../session/recover.ts')
  const end = Date.now() + READERS_PATIENCE_MS
  while (Date.now() < end) {
    const readers = (await openersOf(base)).filter(isReader)
    if (readers.length === 0) return
    for (const { pid } of readers) killIfThere(pid)
    await delay(20)
  }
}
