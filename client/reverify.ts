// The scheduled full read-back: at a pull's end or from cron, once all of the clone was not read for as long as is configured.

import { Failure } from '../shared/failures.ts'
import { formatDuration } from '../shared/quantities.ts'
import type { Log } from '../shared/log.ts'
import type { Watcher } from './attempt.ts'
import type { CloneConfig } from './config/effective.ts'
import { openPool } from './copy/pool.ts'
import { chunkCount } from './plan.ts'
import { lastFullRead, recordFullRead } from './store/full-read.ts'
import { isUndamaged, soundGenerations, type Sound } from './store/generation.ts'
import type { Layout } from './store/layout.ts'
import { keepVerdict } from './verdict.ts'
import { problemsOf, sizeOf, verifyGeneration } from './verify.ts'

export interface Due {
  readonly due: boolean
  /** When all of the clone was last read back; undefined when that is not known. */
  readonly last: Date | undefined
  /** In words, for people. */
  readonly reason: string
}

/** @param now milliseconds since 1970 */
export async function reverifyDue(
  clone: Pick<CloneConfig, 'reverifyMs'>,
  layout: Layout,
  now: number = Date.now(),
): Promise<Due> {
  const sound = (await soundGenerations(layout.dir)).filter(isUndamaged)
  const last = await lastFullRead(layout, sound)
  const ageMs = last && now - last.getTime()
  const { reverifyMs } = clone
  if (reverifyMs === undefined) return { due: false, last, reason: 'reverify is off' }
  if (sound.length === 0) return { due: false, last, reason: 'there is no good generation' }
  if (ageMs === undefined) return { due: true, last, reason: 'it was never read back in full' }
  // A time to come was written by a clock that was wrong.
  if (ageMs < 0) return { due: true, last, reason: 'when it was last read back is unknown' }
  const reason = `all of it was read back ${formatDuration(ageMs)} ago`
  return { due: ageMs >= reverifyMs, last, reason }
}

export interface Reverify {
  /** The pull has read back every byte just now. */
  readonly whole: boolean
  readonly signal: AbortSignal
  readonly log: Log
  readonly watcher: Watcher
}

/**
 * For a pull, after the merge and under its lock: reads all of the generation just published when that is due.
 * @returns seconds it took; undefined when it was not due
 * @throws Failure INTEGRITY when it is damaged, which is recorded; STANDBY_IO; the signal's reason
 */
export async function reverifyIfDue(
  clone: CloneConfig,
  layout: Layout,
  id: string,
  { whole, signal, log, watcher }: Reverify,
): Promise<number | undefined> {
  const generations = await soundGenerations(layout.dir)
  const found = generations.find(one => one.id === id)
  if (!found) throw new Failure('INTERNAL', `generation ${id} is not there to be read back`)
  // A first pull has read back all; when that was must outlive its generation.
  const { at } = found.generation.verified
  if (whole) await recordFullRead(layout, found, new Date(at))
  const { due, reason } = await reverifyDue(clone, layout)
  if (!due) return undefined
  log.info({ domain: clone.name, recoveryPoint: id, reason }, 'reverify')
  const began = performance.now()
  await readAll(layout, generations, found, signal, watcher).catch((error: unknown) => {
    signal.throwIfAborted()
    throw error
  })
  return Math.round(performance.now() - began) / 1000
}

async function readAll(
  layout: Layout,
  generations: readonly Sound[],
  found: Sound,
  signal: AbortSignal,
  watcher: Watcher,
): Promise<void> {
  const chunks = found.generation.disks.reduce((sum, { size }) => sum + chunkCount(size), 0)
  await using pool = openPool(chunks)
  watcher.phase('verify', sizeOf(found))
  const onProgress = (bytes: number): void => watcher.progress(bytes)
  const disks = await verifyGeneration(found, { generations, pool, signal, onProgress })
  const { sound } = await keepVerdict(layout, generations, found, disks)
  watcher.done()
  if (sound) return
  const problems = disks.flatMap(problemsOf).join('; ')
  throw new Failure(
    'INTEGRITY',
    `generation ${found.id} was published, but reading all of it back found damage: ${problems}`,
    { remedy: "suspect this host's medium; see dmesg, then run: clone verify --repair DOMAIN" },
  )
}
