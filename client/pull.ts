// One pull of one domain, start to finish. The numbers are those of docs/architecture.md.

import { setMaxListeners } from 'node:events'
import path from 'node:path'
import { Cleanup } from '../shared/cleanup.ts'
import { Failure } from '../shared/failures.ts'
import { FEATURES } from '../shared/gate.ts'
import type { NbdConnection } from '../shared/nbd/client.ts'
import {
  newAttempt,
  recordAttempt,
  retriesOf,
  timed,
  withGeneration,
  type Attempt,
} from './attempt.ts'
import { TrackingLie } from './audit.ts'
import type { CloneConfig } from './config/effective.ts'
import { bytesOf } from './copy/chunk-set.ts'
import { copy } from './copy/copy.ts'
import { openDisks } from './copy/disks.ts'
import { storeFailure } from './copy/image.ts'
import { openPool } from './copy/pool.ts'
import { readBack } from './copy/read-back.ts'
import type { Pulled, PullOptions } from './pulled.ts'
import { planFrozen } from './frozen-plan.ts'
import { chunkCount, sizeOf, type DiskPlan } from './plan.ts'
import { sourceDigests } from './source/digests.ts'
import { openGate } from './source/gate.ts'
import { lastingDisk } from './source/reconnect.ts'
import { acknowledge, giveUp, release } from './source/release.ts'
import {
  checkSession,
  connectOrExplain,
  explainLoss,
  greet,
  wantedDisks,
} from './source/session.ts'
import { streamsPerDisk } from './source/streams.ts'
import { distrust, trustAfter, whyCompare } from './trust.ts'
import { stopAfter } from './stop-after.ts'
import { reverifyIfDue } from './reverify.ts'
import { checkPatched, findBases, heldBy, roomOf } from './store/bases.ts'
import { commit } from './store/commit.ts'
import { repairCurrent } from './store/current.ts'
import { describeGeneration, digestsOf, levelOf } from './store/describe.ts'
import { clearStaging, stagedFailure, tidyStaging } from './store/donor.ts'
import { ofStore } from './store/failure.ts'
import { soundGenerations } from './store/generation.ts'
import {
  boundTo,
  checkBinding,
  checkIsNew,
  checkRole,
  checkUnused,
  lockClone,
} from './store/guard.ts'
import { layoutOf, makeFolders, type Layout } from './store/layout.ts'
import { methodFor } from './store/method.ts'
import { resolveOwnership } from './store/ownership.ts'
import { prune } from './store/prune.ts'
import { seal, writeDefinitions } from './store/publish.ts'
import { checkPatchable } from './store/rollback.ts'
import { checkRoom, checkWritable } from './store/room.ts'
import { nameStaging, stageBases } from './store/stage.ts'
import { readState } from './store/state.ts'
import { recover } from './store/undo.ts'

/** How long a connection may take to end that has nothing to give any more; the release proves what was read. */
const GOODBYE_MS = 5_000

/** Pulls one domain into its clone; every attempt under the lock leaves a history line. @throws Failure */
export async function pull(clone: CloneConfig, options: PullOptions): Promise<Pulled> {
  await using cleanup = new Cleanup()
  const layout = layoutOf(clone.dir)
  try {
    await makeFolders(layout)
    cleanup.defer(lockClone(layout, 'pull'))
  } catch (error) {
    throw storeFailure(layout.dir, error)
  }

  const attempt = newAttempt()
  const pulled = await pullLocked(clone, layout, attempt, options).catch(async (error: unknown) => {
    const failure = await stagedFailure(layout, attempt, ofStore(clone.dir, error))
    await recordAttempt(layout, attempt, 'failed', failure).catch((second: unknown) =>
      options.log.error({ err: second }, 'the failed attempt could not be recorded'),
    )
    throw failure
  })

  // 8. Record freshness and history; prune by retention.
  try {
    await recordAttempt(layout, attempt, pulled.source)
    const pruned = await prune(layout, await readState(layout), clone.keep)
    return { ...pulled, pruned }
  } catch (error) {
    throw withGeneration(ofStore(clone.dir, error), pulled.recoveryPoint)
  }
}

async function pullLocked(
  clone: CloneConfig,
  layout: Layout,
  attempt: Attempt,
  options: PullOptions,
): Promise<Omit<Pulled, 'pruned'>> {
  const { adopt, full, signal: stopped, maxDurationMs, rate, log: parentLog, watcher } = options
  await using cleanup = new Cleanup()
  cleanup.defer(() => watcher.done())
  const log = parentLog.child({ domain: clone.name })
  const over = new AbortController()
  const signal = AbortSignal.any([stopped, over.signal])
  // Each disk's connection listens; with more than ten, Node would print a warning.
  setMaxListeners(0, signal)
  const liftLimit = stopAfter(over, maxDurationMs)
  cleanup.defer(liftLimit)
  const onRetry = retriesOf(attempt, log)

  // 1. May this clone be written?
  await recover(layout, stopped)
  let state = await readState(layout)
  checkRole(layout, state)
  const left = await tidyStaging(layout)
  const donor = full ? undefined : left
  const sound = await soundGenerations(layout.dir)
  await repairCurrent(layout, state, sound)
  await checkUnused(layout, sound)
  const ownership = await resolveOwnership(clone.ownership, clone.name)
  await checkWritable(layout, ownership)
  const method = await methodFor(clone.generations, layout)
  if (method === 'in-place' || clone.devices.size > 0)
    await checkPatchable(clone.name, state, sound)
  const { verify, devices } = clone
  Object.assign(attempt, { method, verify })

  // 2. Connect: greet, stage what is built upon, reserve a session, and freeze it with the first NBD connection.
  const gate = await openGate(clone.source, signal)
  cleanup.defer(() => gate[Symbol.asyncDispose]())
  const greeting = await greet(gate, clone, state, signal)
  const described = await gate.call('describe', { domain: clone.domain }, { signal })
  const source = { hostId: greeting.hostId, domainUuid: described.uuid }
  checkBinding(layout, boundTo(state, sound.at(-1)?.generation), source, adopt)
  const digests = greeting.features.includes(FEATURES.digests)
  if (verify === 'source' && !digests)
    throw new Failure(
      'SOURCE_REFUSED',
      `source ${clone.source.name} is too old to give digests, and ${clone.name} is to be verified by them`,
      { remedy: 'install this version of nbd-clone there, or set verify: readback' },
    )
  const wanted = wantedDisks(clone, described, sound.at(-1))
  attempt.omitted = wanted.omitted
  for (const disk of wanted.omitted) log[disk.lost ? 'warn' : 'info'](disk, 'disk is not pulled')

  const bases = await findBases(layout, sound, wanted.disks, { method, full, devices })
  cleanup.defer(() => bases[Symbol.asyncDispose]())
  await checkPatched(layout, bases)
  await checkRoom(layout, await roomOf(wanted.disks, bases), () => clearStaging(layout))
  await timed(attempt, log, 'stage', () => stageBases(layout, bases, signal))

  // The threads start while the source freezes, not after it.
  const pool = openPool(
    wanted.disks.reduce((sum, { size = Infinity }) => sum + chunkCount(size), 0),
  )
  cleanup.defer(() => pool[Symbol.asyncDispose]())
  const { token, session } = await gate.call(
    'session.open',
    { domain: clone.domain, want: { tracking: true } },
    { signal },
  )
  attempt.session = session
  const released = cleanup.defer(() => giveUp(gate, token))
  const onLost = (reason: Failure): void => over.abort(reason)
  const endLease = gate.keepLease({ token, signal, onRetry, onLost })
  cleanup.defer(endLease)
  const beginning = { gate, clone, token, signal, stopped, onRetry }
  const connections = new Map<string, NbdConnection>()
  cleanup.defer(() => connections.forEach(connection => connection.destroy()))
  const { info, disks } = await timed(attempt, log, 'freeze', async () => {
    for (const { target } of wanted.disks)
      connections.set(target, await connectOrExplain(beginning, target))
    const info = await gate.call('session.info', { token }, { signal })
    attempt.recoveryPoint = info.recoveryPoint.id
    return { info, disks: checkSession(clone, info, described.uuid, connections, wanted.omitted) }
  })
  const { id } = info.recoveryPoint
  checkIsNew(id, sound)

  // 3. Plan.
  const compare = whyCompare(clone, state, options)
  const means = { digests, full, verify, donor: donor && path.basename(donor), compare }
  const asked = { gate, token, features: greeting.features, signal }
  const held = heldBy(sound.at(-1), bases, disks)
  const frozenPlan = await timed(attempt, log, 'plan', () =>
    planFrozen(asked, disks, held, bases, means),
  ).catch((error: unknown) => explainLoss(gate, token, error, signal))
  const { plan, changed, data, promised, audited, alarm } = frozenPlan
  Object.assign(attempt, { plan, audited, alarm })
  const raise = async (alarm: string): Promise<void> => {
    attempt.alarm = alarm
    log.error({ alarm }, 'the source does not record all changes')
    state = await distrust(layout, state, alarm)
  }
  if (alarm !== undefined) await raise(alarm)

  // 4. Copy into the store.
  const staging = await nameStaging(layout, id)
  attempt.reusable = digests
  watcher.phase('copy', sizeOf(plan))
  const streams = streamsPerDisk(greeting.roundTripMs, connections.size)
  const frozen = { gate, clone, token, recoveryPoint: id, streams, signal, onRetry, rate }
  const lasting = new Map(
    [...connections].map(([target, first]) => [target, lastingDisk(first, target, frozen)]),
  )
  cleanup.defer(() => lasting.forEach(connection => connection.destroy()))
  const origin = {
    ...{ connections: lasting, changed, promised, data },
    digests: ({ target, size }: DiskPlan) =>
      sourceDigests(gate, token, target, size, signal, verify === 'source'),
  }
  const progress = (bytes: number): void => watcher.progress(bytes)
  const copies = await openDisks(
    ...([cleanup, staging, plan, bases, donor, origin, attempt.bytes, progress] as const),
  )
  await timed(attempt, log, 'copy', () =>
    copy(copies, pool, attempt.bytes, signal, progress),
  ).catch(async (error: unknown) => {
    if (error instanceof TrackingLie) await raise(error.message)
    return explainLoss(gate, token, error, signal)
  })

  // 5. Release: the source merges while we go on. An error here means that nothing is published.
  liftLimit()
  await timed(attempt, log, 'release', async () => {
    // Without gate and connections the source would take us for dead: a lost gate must be back before they go.
    await gate.call('session.renew', { token }, { signal })
    await Promise.all([...lasting.values()].map(connection => connection.disconnect(GOODBYE_MS)))
    endLease()
    await release(gate, token, id, signal)
    released()
  })

  // 6. Verify: what was written is read back from the medium.
  const written = copies.map(({ written, plan }) => bytesOf(written, plan.size))
  watcher.phase(
    'verify',
    written.reduce((sum, bytes) => sum + bytes, 0),
  )
  await timed(attempt, log, 'verify', async () => {
    await writeDefinitions(staging, info)
    for (const disk of copies) {
      await disk.image.sync()
      await readBack(disk, { pool, signal, onProgress: progress })
    }
  })

  // 7. Publish; acknowledge; wait for the merge's outcome.
  const seq = state.lastSeq + 1
  const dir = await timed(attempt, log, 'publish', async () => {
    const generation = describeGeneration(
      { info, greeting, omitted: wanted.omitted },
      { seq, domain: clone.domain },
      await digestsOf(staging, plan),
      levelOf(plan, verify),
    )
    await seal(layout, generation, ownership)
    const next = { ...trustAfter(state, frozenPlan, options), lastSeq: seq, bound: source }
    const working = { pool, signal, watcher }
    const dir = await commit(layout, id, { before: state, next }, bases, ownership, working)
    attempt.seq = seq
    return dir
  })
  watcher.done()
  const outcome = await timed(attempt, log, 'merge', () =>
    acknowledge(gate, { clone: clone.name, domain: clone.domain, token, id }, signal, watcher),
  ).catch((error: unknown) => {
    throw withGeneration(error, id)
  })

  const whole = levelOf(plan, 'readback') === 'all'
  const took = await reverifyIfDue(clone, layout, id, { whole, signal, log, watcher })
  if (took !== undefined) attempt.seconds['reverify'] = took

  const { bytes, seconds } = attempt
  const { omitted } = wanted
  const said = attempt.alarm === undefined ? {} : { alarm: attempt.alarm }
  return {
    ...{ recoveryPoint: id, seq, dir, session, plan, omitted, bytes, seconds, ...said },
    source: outcome,
  }
}
