// All configured domains: their sessions, and which disks each exports.

import { readdir } from 'node:fs/promises'
import { Failure, toFailure } from '../../shared/failures.ts'
import { domainSettings } from '../config/schema.ts'
import { exportability, readDomainXml } from '../libvirt/domain-xml.ts'
import { createDomainSessions, type DomainSessions } from '../session/domain.ts'
import { isOpen, readJournal } from '../session/journal.ts'
import type { Lease } from '../session/lease.ts'
import { settle } from '../session/settle.ts'
import type { Source } from '../source.ts'

export interface Domains {
  /** @throws Failure SOURCE_REFUSED when the domain is not listed in source.yaml */
  get(domain: string): DomainSessions
  all(): readonly DomainSessions[]
  /** Targets that the domain exports now; empty when libvirt does not know it. */
  targets(domain: string): Promise<readonly string[]>
  findLease(token: string): { sessions: DomainSessions; lease: Lease } | undefined
  /** Settles every journal that is open, of domains that are no longer listed too. */
  recoverAll(): Promise<void>
}

/** How long an answer of libvirt about a domain's disks is good for new connections. */
const TARGETS_FRESH_MS = 5000

export function createDomains(source: Source): Domains {
  const { config, virsh, paths, log } = source
  const sessions = new Map(
    Object.keys(config.domains).map(name => [name, createDomainSessions(source, name)]),
  )
  const known = new Map<string, { at: number; targets: Promise<readonly string[]> }>()

  async function readTargets(domain: string): Promise<readonly string[]> {
    const result = await virsh.run(['dumpxml', '--domain', domain])
    if (result.exitCode !== 0) return []
    const { disks } = domainSettings(config, domain)
    return readDomainXml(result.stdout)
      .disks.filter(
        disk => exportability(domain, disk, disks[disk.target]?.exclude === true).kind !== 'leave',
      )
      .map(disk => disk.target)
  }

  async function recoverUnlisted(): Promise<void> {
    const files = await readdir(paths.journals).catch(() => [])
    for (const file of files.filter(name => name.endsWith('.journal'))) {
      const domain = file.slice(0, -'.journal'.length)
      if (sessions.has(domain)) continue
      const journal = await readJournal(paths.journals, domain)
      if (journal && isOpen(journal)) await settle(source, journal)
    }
  }

  const domains: Domains = {
    get(domain) {
      const found = sessions.get(domain)
      if (found) return found
      throw new Failure('SOURCE_REFUSED', `domain ${domain} is not exported by this source`, {
        remedy:
          'list it under domains: in source.yaml on the source, and restart clone-server serve',
      })
    },
    all: () => [...sessions.values()],
    async targets(domain) {
      const cached = known.get(domain)
      if (cached && Date.now() - cached.at < TARGETS_FRESH_MS) return cached.targets
      const targets = readTargets(domain).catch(() => [])
      known.set(domain, { at: Date.now(), targets })
      return targets
    },
    findLease(token) {
      for (const one of sessions.values()) {
        const lease = one.leases().find(other => other.token === token)
        if (lease) return { sessions: one, lease }
      }
      return undefined
    },
    async recoverAll() {
      const attempts = [...sessions.values()].map(one => ({
        what: one.domain,
        run: () => one.recover(),
      }))
      for (const { what, run } of [...attempts, { what: 'unlisted domains', run: recoverUnlisted }])
        try {
          await run()
        } catch (error) {
          log.error(
            { domain: what, reason: toFailure(error).message },
            'recovery failed, exports of it are blocked',
          )
        }
    },
  }
  return domains
}
