// Brings a domain back onto its bases, from wherever QEMU, libvirt and its journal say it is. The end of every session, the
// roll-back of a failed begin and the recovery of a left-over are this one function.

import { setTimeout as delay } from 'node:timers/promises'
import { Failure, toFailure } from '../../shared/failures.ts'
import { findQemu } from '../libvirt/qemu-process.ts'
import { libvirtView } from '../libvirt/view.ts'
import type { Source } from '../source.ts'
import { readJournal, type Journal } from './journal.ts'
import { bringBackToLibvirt } from './lost.ts'
import { settleRunning } from './running.ts'
import type { SettledDisk } from './session.ts'
import { settleStopped } from './stopped.ts'

/** A killed virsh, a libvirtd that restarts or a guest that shuts down meanwhile: look again, and go on from there. */
const ATTEMPTS = 4
const RETRY_MS = 500

/** @throws Failure MERGE_FAILED or NEEDS_OPERATOR; the journal then stays open and recover can go on */
export async function settle(source: Source, journal: Journal): Promise<SettledDisk[]> {
  const { domain } = journal.intent
  for (let attempt = 1; ; attempt++)
    try {
      const now = (await readJournal(source.paths.journals, domain)) ?? journal
      return await settleOnce(source, now)
    } catch (error) {
      const failure = toFailure(error)
      if (failure.code === 'NEEDS_OPERATOR') throw failure
      source.log.debug({ domain, attempt, reason: failure.message }, 'not settled yet')
      if (attempt < ATTEMPTS) {
        await delay(RETRY_MS * attempt)
        continue
      }
      if (failure.code === 'MERGE_FAILED') throw failure
      // Whatever stopped us, the domain may be on its overlays.
      throw new Failure('MERGE_FAILED', `domain ${domain} is not settled: ${failure.message}`, {
        cause: error,
        remedy: `on the source run: clone-server recover ${domain}`,
      })
    }
}

async function settleOnce(source: Source, journal: Journal): Promise<SettledDisk[]> {
  const { domain, uuid } = journal.intent
  const view = await libvirtView(source.virsh, domain)
  const qemu = await findQemu(uuid)
  if (qemu && view.active) return settleRunning(source, journal, qemu)
  if (qemu) {
    await bringBackToLibvirt(source, journal, qemu, view.state)
    const now = (await readJournal(source.paths.journals, domain)) ?? journal
    return settleRunning(source, now, qemu)
  }
  if (view.active)
    throw new Failure(
      'MERGE_FAILED',
      `libvirt says that ${domain} is ${view.state}, but no QEMU process of it runs on this host`,
    )
  return settleStopped(source, journal, view.state)
}
