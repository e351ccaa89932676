// Every way this program fails: the one table that the exit status, `--help` and docs/reference print.

export interface FailureRow {
  /** Process exit status. */
  readonly exit: number
  /** Whether running the same command again, unchanged, can succeed. */
  readonly retry: boolean
  /** What it means, for the EXIT STATUS sections. */
  readonly meaning: string
  /** What to type or look at next. */
  readonly hint: string
}

export const FAILURES = {
  INTERNAL: {
    exit: 1,
    retry: false,
    meaning: 'internal error',
    hint: 'this is a bug in nbd-clone; run again with --log-level debug and report both',
  },
  USAGE: {
    exit: 2,
    retry: false,
    meaning: 'wrong usage or configuration',
    hint: 'see --help; of a configuration: clone config check, on a source clone-server config check',
  },
  SOURCE_UNREACHABLE: {
    exit: 10,
    retry: true,
    meaning: 'source unreachable',
    hint: 'check the network, and on the source that clone-server serve is running',
  },
  SOURCE_REFUSED: {
    exit: 11,
    retry: true,
    meaning: 'source refused',
    hint: 'the reason is in the message; on the source run: clone-server status',
  },
  SNAPSHOT_FAILED: {
    exit: 12,
    retry: true,
    meaning: 'snapshot failed, the source is on its bases',
    hint: 'on the source run: clone-server status',
  },
  MERGE_FAILED: {
    exit: 13,
    retry: false,
    meaning: 'merge failed, the source is still on an overlay',
    hint: 'on the source run: clone-server recover DOMAIN',
  },
  NEEDS_OPERATOR: {
    exit: 14,
    retry: false,
    meaning: 'source needs operator',
    hint: 'on the source run: clone-server recover DOMAIN, and follow what it prints',
  },
  TRANSFER: {
    exit: 20,
    retry: true,
    meaning: 'transfer failed',
    hint: 'nothing was published and the last generation is untouched; pull again',
  },
  INTEGRITY: {
    exit: 21,
    retry: true,
    meaning: 'integrity: bytes do not match their digest',
    hint: 'suspect the medium or memory of the host named; run: clone verify DOMAIN',
  },
  SPACE: {
    exit: 22,
    retry: false,
    meaning: 'not enough space',
    hint: 'free space on the path named, or lower keep and run: clone prune',
  },
  STANDBY_IO: {
    exit: 23,
    retry: false,
    meaning: 'standby I/O error',
    hint: 'check the file system and permissions of the path named, and dmesg',
  },
  LOCKED: {
    exit: 30,
    retry: true,
    meaning: 'locked by another run',
    hint: 'wait for the process named, then run again',
  },
  UNSAFE: {
    exit: 31,
    retry: false,
    meaning: 'refused for safety',
    hint: 'nothing was changed; the message says what would have been at risk',
  },
  PARTLY: {
    exit: 40,
    retry: true,
    meaning: 'partly failed within one domain',
    hint: 'see the messages above',
  },
  SOURCE_OFF: {
    exit: 75,
    retry: true,
    meaning: 'source off by design',
    hint: 'pull again when the domain runs',
  },
  INTERRUPTED: {
    exit: 130,
    retry: true,
    meaning: 'interrupted',
    hint: 'nothing was published and the last generation is untouched; pull again',
  },
} as const satisfies Record<string, FailureRow>

export type FailureCode = keyof typeof FAILURES

export interface FailureOptions {
  readonly cause?: unknown
  /** The exact next command, when it is more precise than the table's hint. */
  readonly remedy?: string | undefined
}

/** An expected failure: one sentence for the user, a code that fixes exit status and hint. */
export class Failure extends Error {
  override readonly name = 'Failure'
  readonly code: FailureCode
  readonly remedy: string | undefined

  constructor(code: FailureCode, message: string, options: FailureOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.code = code
    this.remedy = options.remedy
  }

  get exit(): number {
    return FAILURES[this.code].exit
  }

  get retry(): boolean {
    return FAILURES[this.code].retry
  }

  get hint(): string {
    return this.remedy ?? FAILURES[this.code].hint
  }
}

export function isFailureCode(code: unknown): code is FailureCode {
  return typeof code === 'string' && Object.hasOwn(FAILURES, code)
}

/** Any thrown value as a Failure; what nobody expected is INTERNAL and keeps its cause. */
export function toFailure(error: unknown): Failure {
  if (error instanceof Failure) return error
  if (error instanceof Error && error.name === 'AbortError')
    return error.cause instanceof Failure
      ? error.cause
      : new Failure('INTERRUPTED', 'interrupted', { cause: error })
  return new Failure('INTERNAL', error instanceof Error ? error.message : String(error), {
    cause: error,
  })
}

/**
 * Severity order for several domains (the worst wins); what is not listed comes after. An interruption outweighs
 * all but a source that is left on an overlay.
 */
const SEVERITY = [13, 14, 130, 21, 22, 23, 20, 12, 11, 10, 31, 30, 75]

/** The exit status of a run over several domains. @param exits one per domain, 0 for success */
export function worstExit(exits: readonly number[]): number {
  const rank = (exit: number): number => {
    if (exit === 0) return Infinity
    const at = SEVERITY.indexOf(exit)
    return at === -1 ? SEVERITY.length : at
  }
  return [...exits].sort((a, b) => rank(a) - rank(b))[0] ?? 0
}

/** What the two command lines print on stderr for a failure. */
export function describeFailure(program: string, error: unknown): string {
  const failure = toFailure(error)
  const lines = [
    `${program}: ${failure.message}`,
    `  hint: ${failure.hint}`,
    `  code: ${failure.code} (exit ${failure.exit})`,
  ]
  return lines.join('\n')
}
