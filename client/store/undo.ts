// undo.json: the journal of an exchange, and what brings a clone back to a complete generation after one that was cut short.

import { readFile, rm } from 'node:fs/promises'
import path from 'node:path'
import { z } from 'zod'
import { Failure } from '../../shared/failures.ts'
import { diskFormat } from '../../shared/gate.ts'
import { fsyncPath, writeDurably } from '../../shared/host/durable.ts'
import { isName, isRecoveryPointId } from '../../shared/names.ts'
import { storeFailure } from '../copy/image.ts'
import { repairCurrent } from './current.ts'
import { finishExchange, forgetSaved, restoreDisk } from './exchange-steps.ts'
import { ofStore } from './failure.ts'
import { soundGenerations } from './generation.ts'
import type { Layout } from './layout.ts'
import { distrusted, readState } from './state.ts'

const id = z.string().refine(isRecoveryPointId, 'not a recovery point id')
const count = z.number().int().nonnegative()
const shape = z.object({ format: diskFormat, size: count })

const journalSchema = z.object({
  schema: z.literal(1),
  /**
   * `saving`: the images are untouched. `patching`: they hold neither generation. `patched`: they hold the new one, and
   * names follow.
   */
  step: z.enum(['saving', 'patching', 'patched']),
  /** The generation that the images become; its folder is in staging/ until `patched` when a pull brought it. */
  to: id,
  /** What state.json says once it is done. */
  state: z.object({
    selected: z.union([z.literal('newest'), count]),
    lastSeq: count,
    bound: z.object({ hostId: z.uuid(), domainUuid: z.uuid() }).nullable(),
    /** Null: it says nothing. Absent, from versions without tracking: it stays as it is. */
    comparedAt: z.iso.datetime().nullable().optional(),
    distrusted: distrusted.nullable().optional(),
  }),
  disks: z.array(
    z.object({
      target: z.string().refine(isName),
      /** The generation that holds the image whole before. */
      from: id,
      before: shape,
      after: shape,
    }),
  ),
})
export type Journal = z.infer<typeof journalSchema>
export type ExchangedDisk = Journal['disks'][number]

/** Undefined when nothing is open. @throws Failure UNSAFE when it cannot be understood */
export async function readJournal(layout: Layout): Promise<Journal | undefined> {
  const file = layout.undo
  let text: string
  try {
    text = await readFile(file, 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw storeFailure(file, error)
  }
  try {
    return journalSchema.parse(JSON.parse(text))
  } catch (error) {
    throw new Failure(
      'UNSAFE',
      `${file} cannot be understood, so it is unknown what the images hold`,
      { cause: error, remedy: 'use a version of nbd-clone that knows it, or restore the file' },
    )
  }
}

/** A step, durable before anything of it is done. */
export async function writeJournal(layout: Layout, journal: Journal): Promise<void> {
  await writeDurably(layout.undo, `${JSON.stringify(journal, undefined, 2)}\n`, 0o600)
}

/** Closed, and `current` shows the selected generation again. */
export async function closeJournal(layout: Layout): Promise<void> {
  await rm(layout.undo)
  await fsyncPath(layout.dir)
  await repairCurrent(layout, await readState(layout), await soundGenerations(layout.dir))
}

/**
 * Ends an exchange that was cut short: back to what the images held before, or forward once they hold the new generation.
 * May be called at any time under the clone's lock, before anything else in the clone is looked at; it may be cut short
 * itself, and be called again.
 * @returns which way it went; undefined when nothing was open
 * @throws Failure SPACE, STANDBY_IO, UNSAFE: the journal stays open and `current` absent
 */
export async function recover(
  layout: Layout,
  signal: AbortSignal = new AbortController().signal,
): Promise<'back' | 'forward' | undefined> {
  const journal = await readJournal(layout)
  if (!journal) return undefined
  try {
    if (journal.step === 'patched') await finishExchange(layout, journal)
    else await goBack(layout, journal, signal)
    await closeJournal(layout)
  } catch (error) {
    signal.throwIfAborted()
    const failure = ofStore(layout.dir, error)
    throw new Failure(
      failure.code,
      `${layout.dir}: an exchange of generations was cut short and cannot be ended yet: ${failure.message}`,
      {
        cause: error,
        remedy: `mend that, then run: clone list ${path.basename(layout.dir)}, which tries again`,
      },
    )
  }
  return journal.step === 'patched' ? 'forward' : 'back'
}

async function goBack(layout: Layout, journal: Journal, signal: AbortSignal): Promise<void> {
  if (journal.step === 'patching')
    for (const disk of journal.disks) await restoreDisk(layout, journal, disk, signal)
  await forgetSaved(layout, journal)
}
