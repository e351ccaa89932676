// Freezes a domain: from "on its bases" to "all writes go to overlays", every step first recorded, then done, then checked.
// docs/architecture.md numbers these same steps.

import { Failure, toFailure } from '../../shared/failures.ts'
import { reasonOf } from '../../shared/host/run.ts'
import { newRecoveryPointId } from '../../shared/names.ts'
import type { RecoveryPoint, SessionDisk, SessionInfo } from '../../shared/gate.ts'
import { domainSettings, type DomainSettings } from '../config/schema.ts'
import { readDominfo, type Dominfo } from '../libvirt/dominfo.ts'
import { readHostFacts } from '../libvirt/facts.ts'
import {
  agentFault,
  deadMenOnDuty,
  endGroup,
  freeze,
  startDeadMan,
  thaw,
  type DeadMan,
} from '../libvirt/freeze.ts'
import { readChains } from '../libvirt/graph.ts'
import { findQemu } from '../libvirt/qemu-process.ts'
import { takeSnapshot } from '../libvirt/snapshot.ts'
import type { Virsh } from '../libvirt/virsh.ts'
import type { Source } from '../source.ts'
import {
  readJournal,
  recordStep,
  startJournal,
  type Journal,
  type SessionDiskRecord,
  type Step,
} from './journal.ts'
import { exportedSize, flushBuffers } from './images.ts'
import { beginOff, type OffGuard } from './off.ts'
import { baseWrittenMs, placeOf } from './overlay.ts'
import { preflight } from './preflight.ts'
import { settle } from './settle.ts'
import { track, UNTRACKED, type Tracking } from '../tracking/tracking.ts'

/** A domain whose bases are frozen. */
export interface Frozen {
  readonly journal: Journal
  readonly recoveryPoint: RecoveryPoint
  readonly disks: readonly (SessionDisk & SessionDiskRecord)[]
  readonly info: SessionInfo
  readonly tracking: Tracking
  /** Only of a domain that is off: what makes its bases stand still. */
  readonly off?: OffGuard
}

/** Our own patience for a thaw; the dead-man has more. */
const THAW_PATIENCE_MS = 10_000

const NO_FREEZE_REMEDY = 'start qemu-guest-agent in the guest, or set quiesce: auto in source.yaml'

/**
 * @param tracked whether a client wants changes to be recorded.
 * @throws Failure SOURCE_REFUSED, SNAPSHOT_FAILED (source on its bases), MERGE_FAILED or NEEDS_OPERATOR (it is not)
 */
export async function begin(source: Source, domain: string, tracked = false): Promise<Frozen> {
  const { virsh, log, paths } = source
  const settings = domainSettings(source.config, domain)

  // 1. The recovery point's instant is taken before the freeze and never goes backwards for a domain.
  const last = await readJournal(paths.journals, domain)
  const after = last ? Date.parse(last.intent.instant) + 1000 : 0
  const instant = new Date(Math.max(Date.now(), after))
  const id = newRecoveryPointId(instant)

  // 2. Preflight, and what a clone needs to know of the domain. One that is off needs no snapshot.
  const dominfo = await readDominfo(virsh, domain)
  if (!dominfo.active) return beginOff(source, domain, { id, instant: instant.toISOString() })
  const checked = await preflight(virsh, settings, domain, id, dominfo)
  if (settings.quiesce === 'required') await checkFreezable(virsh, domain, dominfo)

  // 3. Intent, fsynced, before anything is touched.
  const [host, intent] = await Promise.all([
    readHostFacts(virsh, checked.live),
    startJournal(paths.journals, {
      session: id,
      domain,
      uuid: checked.uuid,
      recoveryPoint: id,
      instant: instant.toISOString(),
      disks: await Promise.all(checked.disks.map(placed)),
      inactiveXml: checked.inactiveXml,
      liveXml: checked.liveXml,
    }),
  ])
  let journal = intent

  // 4. Freeze, snapshot, thaw. From here on a failure is rolled back by merging whatever was made.
  try {
    const taken = await snapshotQuiesced(source, settings, journal, checked.left)
    journal = taken.journal

    // 5. Block devices: a buffered reader must not see pages from before the snapshot.
    for (const disk of checked.disks) await flushBuffers(disk)

    const disks = await Promise.all(
      checked.disks.map(async disk => ({ ...disk, size: await exportedSize(disk) })),
    )
    const recoveryPoint = { id, instant: instant.toISOString(), consistency: taken.consistency }
    journal = await recordStep(journal, 'frozen', {
      consistency: taken.consistency,
      baseWritten: await basesWritten(checked.disks),
      ...taken.times,
    })
    log.info(
      { domain, recoveryPoint: id, ...taken.times, consistency: taken.consistency },
      'frozen',
    )
    const tracking =
      tracked && settings.tracking
        ? await track(source, domain, checked.uuid, id, disks)
        : UNTRACKED
    return {
      journal,
      recoveryPoint,
      tracking,
      disks,
      info: {
        recoveryPoint,
        uuid: checked.uuid,
        disks: disks.map(({ target, format, size }) => ({ target, format, size })),
        inactiveXml: checked.inactiveXml,
        liveXml: checked.liveXml,
        nvram: checked.nvram?.toString('base64') ?? null,
        ...host,
        ...taken.times,
      },
    }
  } catch (error) {
    log.error({ domain, recoveryPoint: id, error }, 'could not freeze, rolling back')
    await settle(source, (await readJournal(paths.journals, domain)) ?? journal)
    const failure = toFailure(error)
    if (failure.code === 'SNAPSHOT_FAILED') throw failure
    throw new Failure('SNAPSHOT_FAILED', failure.message, { cause: error, remedy: failure.remedy })
  }
}

async function placed(disk: SessionDiskRecord): Promise<SessionDiskRecord> {
  return { ...disk, overlayPlace: await placeOf(disk.overlay) }
}

/** While they are frozen this does not change, so it tells later whether somebody started from a stale base. */
async function basesWritten(disks: readonly SessionDiskRecord[]): Promise<Record<string, number>> {
  const written: Record<string, number> = {}
  for (const disk of disks) {
    const at = await baseWrittenMs(disk)
    if (at !== undefined) written[disk.target] = at
  }
  return written
}

/** A freeze that is required and cannot be is refused before anything is touched. @throws Failure SNAPSHOT_FAILED */
async function checkFreezable(virsh: Virsh, domain: string, { state }: Dominfo): Promise<void> {
  const cannot = (reason: string, remedy: string): never => {
    throw new Failure('SNAPSHOT_FAILED', `domain ${domain} could not be frozen: ${reason}`, {
      remedy,
    })
  }
  if (state === 'paused')
    cannot('it is paused', `virsh resume ${domain}, or set quiesce: auto in source.yaml`)
  const reason = await agentFault(virsh, domain)
  if (reason !== undefined) cannot(reason, NO_FREEZE_REMEDY)
}

interface Taken {
  readonly journal: Journal
  readonly consistency: 'quiesced' | 'crash'
  readonly times: { readonly freezeMs: number; readonly snapshotMs: number }
}

/** Freeze per policy, one snapshot of all disks, thaw, each checked. */
async function snapshotQuiesced(
  source: Source,
  settings: DomainSettings,
  journal: Journal,
  left: readonly string[],
): Promise<Taken> {
  const { virsh, log } = source
  const { domain, disks, recoveryPoint } = journal.intent
  const started = Date.now()
  const deadMan =
    settings.quiesce === 'off'
      ? undefined
      : await freezeGuest(source, settings, domain, () => record('freeze'))

  async function record(step: Step, facts = {}): Promise<void> {
    journal = await recordStep(journal, step, facts)
  }

  // Which QEMU process went onto the overlays tells later whether the one that runs then has their writes.
  const qemu = await findQemu(journal.intent.uuid)
  await record('snapshot', { qemu: qemu?.identity })
  const snapshotStarted = Date.now()
  const result = await takeSnapshot(virsh, domain, `nbd-clone-${recoveryPoint}`, [
    ...disks.map(({ target, overlay }) => ({ target, overlay })),
    ...left.map(target => ({ target, overlay: undefined })),
  ])
  const snapshotMs = Date.now() - snapshotStarted
  // Past its deadline the dead-man may have thawed before the snapshot was taken.
  const quiesced = deadMan !== undefined && performance.now() < deadMan.deadline

  if (deadMan) {
    await record('thaw')
    await thawForCertain(source, domain, deadMan)
  }
  const freezeMs = deadMan ? Date.now() - started : 0

  // The exit status is a hint; whether every disk writes to its overlay is read from QEMU.
  const chains = await readChains(virsh.monitor(domain))
  const missed = disks.find(
    disk => !chains.some(chain => chain[0] === disk.overlay && chain[1] === disk.base),
  )
  if (missed)
    throw new Failure(
      'SNAPSHOT_FAILED',
      `no snapshot of disk ${missed.target} of ${domain}: ${reasonOf(result)}`,
    )
  if (!quiesced && settings.quiesce === 'required')
    throw new Failure(
      'SNAPSHOT_FAILED',
      `domain ${domain}: the snapshot took ${snapshotMs} ms, past the freeze deadline`,
    )
  if (!quiesced && deadMan)
    log.warn(
      { domain, snapshotMs },
      'the freeze deadline passed, the recovery point is crash-consistent',
    )
  return { journal, consistency: quiesced ? 'quiesced' : 'crash', times: { freezeMs, snapshotMs } }
}

/**
 * Freezes the guest under a dead-man; undefined when it is not frozen and the policy can live with that.
 * @throws Failure SNAPSHOT_FAILED
 */
async function freezeGuest(
  source: Source,
  settings: DomainSettings,
  domain: string,
  record: () => Promise<void>,
): Promise<DeadMan | undefined> {
  const { virsh, log } = source
  await relieveDeadMen(source, domain)
  await record()
  const deadMan = startDeadMan(virsh, domain, settings.freezeDeadline)
  const result = await freeze(virsh, domain, settings.freezeDeadline)
  if (result.kind === 'frozen') return deadMan
  if (result.kind === 'no agent') deadMan.dismiss()
  else await thawForCertain(source, domain, deadMan)
  if (settings.quiesce === 'required')
    throw new Failure('SNAPSHOT_FAILED', `domain ${domain} could not be frozen: ${result.reason}`, {
      remedy: NO_FREEZE_REMEDY,
    })
  log.warn({ domain, reason: result.reason }, 'not frozen, the recovery point is crash-consistent')
  return undefined
}

/** A dead-man that an earlier begin left on duty would thaw this one's freeze: confirm its thaw first, then end it. */
async function relieveDeadMen(source: Source, domain: string): Promise<void> {
  const left = await deadMenOnDuty(domain)
  if (left.length === 0) return
  if (!(await thaw(source.virsh, domain, THAW_PATIENCE_MS)))
    throw new Failure(
      'SNAPSHOT_FAILED',
      `the guest of ${domain} does not confirm that it is thawed from an earlier freeze`,
      {
        remedy: `virsh domfsthaw ${domain}`,
      },
    )
  left.forEach(endGroup)
}

/** Thaws until libvirt confirms it, then dismisses the dead-man; unconfirmed, the dead-man stays on duty. */
async function thawForCertain(source: Source, domain: string, deadMan: DeadMan): Promise<void> {
  if (await thaw(source.virsh, domain, THAW_PATIENCE_MS)) deadMan.dismiss()
  else
    throw new Failure(
      'SNAPSHOT_FAILED',
      `the guest of ${domain} does not confirm that it is thawed`,
      {
        remedy: `a helper goes on trying for 10 minutes; by hand: virsh domfsthaw ${domain}`,
      },
    )
}
