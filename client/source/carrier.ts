// What a gate is spoken to over: a child of ours, or a command on the source through ssh.

import type { Readable, Writable } from 'node:stream'
import type { Ending } from './last-words.ts'

/** Disposing ends it: its input is closed, and if that is not enough it is killed. */
export interface Carrier extends AsyncDisposable {
  /** What it says. */
  readonly output: Readable
  /** What it hears. */
  readonly input: Writable
  /** Resolves, never rejects, when it is over and all that it said is there. */
  readonly over: Promise<Ending>
  /** Ends it without waiting for what it has to say. */
  abandon(): void
}

/** How long a gate may take to end by itself, and then by each harder means. */
export const GRACE_MS = 3_000
