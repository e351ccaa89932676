// One pull of one domain, start to finish. The numbers are those of docs/architecture.md.

import { setMaxListeners } from 'node:events'
import { rm, stat } from 'node:fs/promises'
import path from 'node:path'
import { Cleanup } from '../shared/cleanup.ts'
import { Failure, toFailure } from '../shared/failures.ts'
import type { SessionInfo } from '../shared/gate.ts'
import type { Log } from '../shared/log.ts'
import type { NbdConnection } from '../shared/nbd/client.ts'
import { newAttempt, recordAttempt, timed, type Attempt, type Watcher } from './attempt.ts'
import type { CloneConfig } from './config/effective.ts'
import { copy, type CopyDisk } from './copy/copy.ts'
import { createImage, storeFailure } from './copy/image.ts'
import { openPool } from './copy/pool.ts'
import { readBack } from './copy/verify.ts'
import { CHUNK_SIZE, chunkCount, planPull, type DiskPlan } from './plan.ts'
import { openGate, type Gate } from './source/gate.ts'
import {
  checkSession,
  connectOrExplain,
  explainLoss,
  greet,
  mergeOutcome,
  release,
  wantedDisks,
  type Greeting,
  type Wanted,
} from './source/session.ts'
import { repairCurrent } from './store/current.ts'
import { ofStore } from './store/failure.ts'
import { imagesOf, soundGenerations, type Generation, type Sound } from './store/generation.ts'
import { checkBinding, checkRole, checkSpace, checkUnused, lockClone } from './store/guard.ts'
import { imageName, layoutOf, makeFolders, manifestName, type Layout } from './store/layout.ts'
import { manifestDigest } from './store/manifest.ts'
import { prune, type PrunePlan } from './store/prune.ts'
import { makeStaging, publish, removeLeftovers, writeDefinitions } from './store/publish.ts'
import { readState, writeState, type State } from './store/state.ts'

export interface PullOptions {
  /** Bind the clone to this source's domain although it belonged to another. */
  readonly adopt: boolean
  readonly signal: AbortSignal
  readonly log: Log
  readonly watcher: Watcher
}

export interface Pulled {
  readonly recoveryPoint: string
  readonly seq: number
  readonly dir: string
  readonly session: string
  readonly plan: readonly DiskPlan[]
  readonly omitted: Wanted['omitted']
  readonly bytes: { readonly read: number; readonly written: number }
  readonly seconds: Readonly<Record<string, number>>
  /** `merged`: the source is on its bases again; `kept`: others still use its session. */
  readonly source: 'merged' | 'kept'
  readonly pruned: PrunePlan
}

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
    const failure = ofStore(clone.dir, error)
    await recordAttempt(layout, attempt, 'failed', failure).catch((second: unknown) =>
      options.log.error({ err: second }, 'the failed attempt could not be recorded'),
    )
    throw failure
  })

  // 8. Record freshness and history; prune by retention.
  try {
    await recordAttempt(layout, attempt, pulled.source)
    const pruned = await prune(layout, await readState(layout), clone.keepLast)
    return { ...pulled, pruned }
  } catch (error) {
    throw withGeneration(ofStore(clone.dir, error), pulled.recoveryPoint)
  }
}

async function pullLocked(
  clone: CloneConfig,
  layout: Layout,
  attempt: Attempt,
  { adopt, signal: stopped, log: parentLog, watcher }: PullOptions,
): Promise<Omit<Pulled, 'pruned'>> {
  await using cleanup = new Cleanup()
  cleanup.defer(() => watcher.done())
  const log = parentLog.child({ domain: clone.name })
  const over = new AbortController()
  const signal = AbortSignal.any([stopped, over.signal])
  // Each disk's connection listens; with more than ten, Node would print a warning.
  setMaxListeners(0, signal)

  // 1. May this clone be written?
  const state = await readState(layout)
  checkRole(layout, state)
  await removeLeftovers(layout)
  const sound = await soundGenerations(layout.dir)
  await repairCurrent(layout, state, sound)
  await checkUnused(layout, sound)
  await checkSpace(layout, await occupied(sound.at(-1)))

  // 2. Connect: greet, reserve a session, and freeze it with the first NBD connection.
  const gate = await openGate(clone.source)
  cleanup.defer(() => gate[Symbol.asyncDispose]())
  const greeting = await greet(gate, clone, state, signal)
  const described = await gate.call('describe', { domain: clone.domain }, { signal })
  const source = { hostId: greeting.hostId, domainUuid: described.uuid }
  checkBinding(layout, state.bound, source, adopt)
  const wanted = wantedDisks(clone, described)
  for (const disk of wanted.omitted) log.info(disk, 'disk is not pulled')

  // The threads start while the source freezes, not after it.
  const pool = openPool(
    wanted.disks.reduce((sum, { size = Infinity }) => sum + chunkCount(size), 0),
  )
  cleanup.defer(() => pool[Symbol.asyncDispose]())
  const { token, session } = await gate.call(
    'session.open',
    { domain: clone.domain, want: {} },
    { signal },
  )
  attempt.session = session
  const released = cleanup.defer(() => giveUp(gate, token))
  const endLease = gate.keepLease(token, reason => over.abort(reason))
  cleanup.defer(endLease)

  const connections = new Map<string, NbdConnection>()
  cleanup.defer(() => connections.forEach(connection => connection.destroy()))
  const { info, disks } = await timed(attempt, log, 'freeze', async () => {
    for (const { target } of wanted.disks)
      connections.set(target, await connectOrExplain(gate, clone, target, token, signal, stopped))
    const info = await gate.call('session.info', { token }, { signal })
    attempt.recoveryPoint = info.recoveryPoint.id
    return { info, disks: checkSession(info, described.uuid, connections, wanted.omitted) }
  })
  const { id } = info.recoveryPoint
  checkIsNew(id, sound)

  // 3. Plan.
  const plan = planPull(disks, sound.at(-1)?.generation.disks)
  attempt.plan = plan

  // 4. Copy into the store.
  const staging = await makeStaging(layout, id)
  cleanup.defer(() => rm(staging, { recursive: true, force: true }))
  const copies: CopyDisk[] = []
  for (const disk of plan) {
    const connection = connections.get(disk.target)
    if (!connection) throw new Failure('INTERNAL', `no connection for disk ${disk.target}`)
    const file = path.join(staging, imageName(disk))
    const image = await createImage(file, path.join(staging, manifestName(disk)), disk.size)
    cleanup.defer(() => image[Symbol.asyncDispose]())
    copies.push({ plan: disk, connection, image })
  }
  const total = plan.reduce((sum, { size }) => sum + size, 0)
  watcher.phase('copy', total)
  await timed(attempt, log, 'copy', () =>
    copy(copies, pool, attempt.bytes, signal, bytes => watcher.progress(bytes)),
  ).catch((error: unknown) => explainLoss(gate, token, error, signal))

  // 5. Release: the source merges while we go on. An error here means that nothing is published.
  await timed(attempt, log, 'release', async () => {
    await Promise.all(copies.map(({ connection }) => connection.disconnect()))
    endLease()
    await release(gate, token, id, signal)
    released()
  })

  // 6. Verify: what was written is read back from the medium.
  watcher.phase('verify', total)
  await timed(attempt, log, 'verify', async () => {
    await writeDefinitions(staging, info)
    for (const { image, plan } of copies) {
      await image.sync()
      await readBack(image, plan, pool, signal, bytes => watcher.progress(bytes))
    }
  })

  // 7. Publish; acknowledge; wait for the merge's outcome.
  const seq = state.lastSeq + 1
  const dir = await timed(attempt, log, 'publish', async () => {
    const digests = await digestsOf(staging, plan)
    signal.throwIfAborted()
    const facts = { seq, domain: clone.domain, omitted: [...wanted.omitted] }
    // Before the rename: a crash between the two may waste a seq, but never gives one twice.
    const next: State = { ...state, lastSeq: seq, bound: source }
    await writeState(layout, next)
    const dir = await publish(layout, { ...describe(info, greeting), ...facts, disks: digests })
    attempt.seq = seq
    await repairCurrent(layout, next, await soundGenerations(layout.dir))
    return dir
  })
  watcher.done()
  const outcome = await timed(attempt, log, 'merge', async () => {
    // Told at the end only: whether the source merged weighs more than whether it took the word.
    const acknowledged = gate
      .call('acknowledge', { domain: clone.domain, recoveryPoint: id }, { signal })
      .then(
        () => undefined,
        (error: unknown) => toFailure(error),
      )
    const outcome = await mergeOutcome(gate, token, signal, () =>
      watcher.note?.(
        `${clone.name}: waiting for the source to merge; Ctrl-C ends only the waiting`,
      ),
    )
    const refused = await acknowledged
    if (refused) throw refused
    return outcome
  }).catch((error: unknown) => {
    throw withGeneration(error, id)
  })

  const { bytes, seconds } = attempt
  const { omitted } = wanted
  return { recoveryPoint: id, seq, dir, session, plan, omitted, bytes, seconds, source: outcome }
}

/** Lets a session go that came to nothing, so that the source merges at once instead of when the lease lapses. */
async function giveUp(gate: Gate, token: string): Promise<void> {
  await gate.call('session.release', { token }, { timeoutMs: 3_000 }).catch(() => undefined)
}

/** Bytes that a generation's images take on disk: the best guess for the next one. */
async function occupied(newest: Sound | undefined): Promise<number> {
  if (!newest) return 0
  const stats = await Promise.all(imagesOf(newest).map(file => stat(file).catch(() => undefined)))
  return stats.reduce((sum, one) => sum + (one?.blocks ?? 0) * 512, 0)
}

function checkIsNew(id: string, sound: readonly Sound[]): void {
  if (sound.some(one => one.id === id))
    throw new Failure(
      'SOURCE_REFUSED',
      `the source's session is ${id}, which this clone has already`,
      {
        remedy: 'pull again when that session is over; on the source run: clone-server status',
      },
    )
}

async function digestsOf(dir: string, plan: readonly DiskPlan[]): Promise<Generation['disks']> {
  const disks: Generation['disks'] = []
  for (const { target, format, size, chunks } of plan) {
    const digest = await manifestDigest(path.join(dir, manifestName({ target })), chunks)
    disks.push({ target, format, size, digest, layers: [] })
  }
  return disks
}

/** What generation.json says of the source and the recovery point. */
function describe(
  info: SessionInfo,
  { hostId, epoch, clockSkewMs }: Greeting,
): Omit<Generation, 'seq' | 'domain' | 'disks' | 'omitted'> {
  return {
    schema: 1,
    source: { hostId, domainUuid: info.uuid, epoch },
    recoveryPoint: { ...info.recoveryPoint, clockSkewMs },
    chunkSize: CHUNK_SIZE,
    definition: { inactive: 'domain.xml', live: info.liveXml === '' ? null : 'live.xml' },
    nvram: info.nvram === null ? null : 'nvram.fd',
    networks: info.networks,
    pools: info.pools,
    host: info.host,
    verified: { level: 'all', at: new Date().toISOString() },
  }
}

/** The same failure, saying that the clone itself is good. */
function withGeneration(error: unknown, id: string): Failure {
  const failure = toFailure(error)
  return new Failure(
    failure.code,
    `${failure.message}; the clone is good all the same: generation ${id} is published`,
    { cause: error, remedy: failure.remedy ?? 'on the source run: clone-server status' },
  )
}
