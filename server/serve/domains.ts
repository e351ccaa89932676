// All configured domains: their sessions, and which disks each exports.

import { Failure, toFailure } from '../../shared/failures.ts'
import { checkName } from '../../shared/names.ts'
import { domainSettings } from '../config/schema.ts'
import { exportability, readDomainXml, type DomainXml } from '../libvirt/domain-xml.ts'
import { createDomainSessions, type DomainSessions } from '../session/domain.ts'
import type { Lease } from '../session/lease.ts'
import { createQueue, type Exclusive } from '../session/queue.ts'
import { definitionBefore, isOpen, journaledDomains, readJournal } from '../session/journal.ts'
import { recoverDomain } from '../session/recover.ts'
import { readXml } from '../session/preflight.ts'
import type { Source } from '../source.ts'

export interface Domains {
  /** @throws Failure SOURCE_REFUSED when the domain is not listed in source.yaml */
  get(domain: string): DomainSessions
  all(): readonly DomainSessions[]
  /** The domain as it is without overlays of ours. @throws Failure SOURCE_REFUSED when libvirt does not say */
  xml(domain: string): Promise<DomainXml>
  /** Targets that the domain exports now. @throws Failure SOURCE_REFUSED when libvirt does not say */
  targets(domain: string): Promise<readonly string[]>
  findLease(token: string): Lease | undefined
  /** Settles the domain's journal, also of a domain that is no longer listed. */
  recover(domain: string, mergeOverlays?: readonly string[]): ReturnType<DomainSessions['recover']>
  /**
   * Settles every journal that is open; one that resists is tried again less and less often.
   * @param all whether to wait until each has been tried; then it never rejects
   */
  recoverAll(all: boolean): Promise<void>
}

/** A journal that could not be settled is tried again after so long, then after twice as long, and so on. */
const RETRY_FIRST_MS = 10_000
const RETRY_LAST_MS = 300_000

/** How long an answer of libvirt about a domain's disks is good for new connections. */
const TARGETS_FRESH_MS = 5000

export function createDomains(source: Source): Domains {
  const { config, virsh, paths, log } = source
  const sessions = new Map(
    Object.keys(config.domains).map(name => [name, createDomainSessions(source, name)]),
  )
  const known = new Map<string, { at: number; targets: Promise<readonly string[]> }>()
  const unlisted = new Map<string, Exclusive>()
  const resisting = new Map<string, { wait: number; next: number; reason: string }>()
  const recovering = new Map<string, Promise<unknown>>()

  /** While overlays of ours are on, libvirt shows them; the domain's disks are those that were there before. */
  async function xmlOf(domain: string): Promise<DomainXml> {
    const journal = await readJournal(paths.journals, domain)
    if (!journal || !isOpen(journal)) return readDomainXml(await readXml(virsh, domain, []))
    return readDomainXml(definitionBefore(journal))
  }

  async function recover(
    domain: string,
    mergeOverlays: readonly string[] = [],
  ): ReturnType<DomainSessions['recover']> {
    const listed = sessions.get(domain)
    if (listed) return listed.recover(mergeOverlays)
    checkName('domain', domain)
    const queue = unlisted.get(domain) ?? createQueue()
    unlisted.set(domain, queue)
    return queue(async () =>
      (await recoverDomain(source, domain, mergeOverlays)) ? 'recovered' : 'nothing to do',
    )
  }

  /** Said once for each reason. */
  function resist(domain: string, failure: Failure): void {
    const before = resisting.get(domain)
    const wait = before ? Math.min(before.wait * 2, RETRY_LAST_MS) : RETRY_FIRST_MS
    resisting.set(domain, { wait, next: Date.now() + wait, reason: failure.message })
    if (before?.reason !== failure.message)
      log.error({ domain, error: failure }, 'not recovered, its exports are blocked')
  }

  /** @param all whether to wait until each has been tried */
  async function recoverEach(all: boolean): Promise<void> {
    const left = await journaledDomains(paths.journals)
    const due = left.filter(domain => (resisting.get(domain)?.next ?? 0) <= Date.now())
    // One that takes hours holds up no other.
    for (const domain of due.filter(one => !recovering.has(one)))
      recovering.set(
        domain,
        recover(domain)
          .then(
            () => resisting.delete(domain),
            (error: unknown) => resist(domain, toFailure(error)),
          )
          .finally(() => recovering.delete(domain)),
      )
    if (all) await Promise.all(recovering.values())
  }

  return {
    get(domain) {
      const found = sessions.get(domain)
      if (found) return found
      throw new Failure('SOURCE_REFUSED', `domain ${domain} is not exported by this source`, {
        remedy:
          'list it under domains: in source.yaml on the source, and restart clone-server serve',
      })
    },
    all: () => [...sessions.values()],
    xml: xmlOf,
    targets(domain) {
      const cached = known.get(domain)
      if (cached && Date.now() - cached.at < TARGETS_FRESH_MS) return cached.targets
      const { disks } = domainSettings(config, domain)
      const targets = xmlOf(domain).then(xml =>
        xml.disks
          .filter(
            disk =>
              exportability(domain, disk, disks[disk.target]?.exclude === true).kind !== 'leave',
          )
          .map(disk => disk.target),
      )
      known.set(domain, { at: Date.now(), targets })
      targets.catch(() => known.delete(domain))
      return targets
    },
    findLease(token) {
      for (const one of sessions.values()) {
        const lease = one.leases().find(other => other.token === token)
        if (lease) return lease
      }
      return undefined
    },
    recover,
    recoverAll: recoverEach,
  }
}
