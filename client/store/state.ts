// state.json: what a clone is (role, whose clone, which generation is selected) and how its attempts went.

import { readFile } from 'node:fs/promises'
import { z } from 'zod'
import { Failure } from '../../shared/failures.ts'
import { writeDurably } from '../../shared/host/durable.ts'
import type { Layout } from './layout.ts'

const count = z.number().int().nonnegative()

/** What the source recorded to have changed was wrong: a human must look before it is believed again. */
export const distrusted = z.object({ at: z.iso.datetime(), reason: z.string() })

const stateSchema = z.object({
  schema: z.literal(1),
  role: z.enum(['standby', 'failed-over', 'failing-back']),
  epoch: count,
  /** The generation that `current` shows. */
  selected: z.union([z.literal('newest'), count]),
  /** The highest seq ever given, so that none is given twice. */
  lastSeq: count,
  /** Pulls so far, and failures in a row. */
  attempts: count,
  failures: count,
  /** Whose clone this is; null before the first generation. */
  bound: z.object({ hostId: z.uuid(), domainUuid: z.uuid() }).nullable(),
  /** When a pull last compared or read everything. */
  comparedAt: z.iso.datetime().optional(),
  distrusted: distrusted.optional(),
  lastAttempt: z
    .object({
      at: z.iso.datetime(),
      outcome: z.string(),
      code: z.string().optional(),
      message: z.string().optional(),
    })
    .nullable(),
})
export type State = z.infer<typeof stateSchema>

const NEW: State = {
  schema: 1,
  role: 'standby',
  epoch: 0,
  selected: 'newest',
  lastSeq: 0,
  attempts: 0,
  failures: 0,
  bound: null,
  lastAttempt: null,
}

/** A clone without state.json is new. @throws Failure UNSAFE when the file cannot be understood: the role is unknown */
export async function readState(layout: Layout): Promise<State> {
  let text: string
  try {
    text = await readFile(layout.state, 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return { ...NEW }
    throw new Failure('STANDBY_IO', `cannot read ${layout.state}: ${String(error)}`, {
      cause: error,
    })
  }
  try {
    return stateSchema.parse(JSON.parse(text))
  } catch (error) {
    throw new Failure(
      'UNSAFE',
      `${layout.state} cannot be understood, so the clone's role is unknown`,
      {
        cause: error,
        remedy:
          'make sure that no failed-over domain runs from this clone, then restore or remove the file',
      },
    )
  }
}

export async function writeState(layout: Layout, state: State): Promise<void> {
  await writeDurably(layout.state, `${JSON.stringify(state, undefined, 2)}\n`, 0o600)
}
