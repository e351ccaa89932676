// A session's hasher as serve sees it: one child of low priority, started when digests are first asked for, and gone before
// anything is merged.

import { spawn, type ChildProcess } from 'node:child_process'
import { availableParallelism } from 'node:os'
import { fileURLToPath } from 'node:url'
import { chunkLength } from '../../shared/chunks.ts'
import { Failure } from '../../shared/failures.ts'
import type { Log } from '../../shared/log.ts'
import type { FromHasher, HashJob, ToHasher } from './words.ts'

export interface Hasher {
  /** Bytes hashed so far, for whomever. */
  hashed(): number
  /**
   * SHA-256 of each chunk of a frozen base, in order.
   * @throws Failure TRANSFER when the base cannot be read or the process is killed; the signal's reason
   */
  digests(asked: Omit<HashJob, 'id'>, signal: AbortSignal): Promise<string[]>
  /** Hashes nothing any more: kills the process and returns when it is gone. */
  end(): Promise<void>
}

/**
 * The guests come first, for processor and disk. Best effort and not idle: a disk that is always busy would let an idle
 * reader starve, and the overlays grow as long as the session lasts. ionice(1) -t: no disk priorities is no failure.
 */
const LOW_PRIORITY = [
  ...['nice', '-n', '10'],
  ...['ionice', '-t', '-c', 'best-effort', '-n', '7'],
] as const

/** How much of the source hashing may take. */
export interface HashingPolicy {
  /** `half` of those that there are, at most 4: the others are the guests'. */
  readonly processors: number | 'half'
  /** Bytes per second. */
  readonly rate: number | 'off'
}

const half = (): number => Math.min(4, Math.max(1, Math.floor(availableParallelism() / 2)))

interface Waiting {
  readonly job: HashJob
  readonly digests: string[]
  missing: number
  readonly resolve: (digests: string[]) => void
  readonly reject: (error: unknown) => void
}

interface Running {
  tell(word: ToHasher): void
  kill(): void
  /** Resolves when the process is gone. */
  readonly ended: Promise<void>
}

export function createHasher(log: Log, policy: HashingPolicy): Hasher {
  const waiting = new Map<number, Waiting>()
  let running: Running | undefined
  let over = false
  let hashed = 0
  let nextId = 0

  function hear(word: FromHasher): void {
    const found = waiting.get(word.id)
    if ('error' in word) {
      waiting.delete(word.id)
      const base = found?.job.base ?? ''
      found?.reject(new Failure('TRANSFER', `the source cannot read ${base}: ${word.error}`))
      return
    }
    if (!found) return
    const { job, digests } = found
    hashed += chunkLength(job.size, word.chunk)
    digests[word.chunk - job.chunk] = word.digest
    if (--found.missing > 0) return
    waiting.delete(word.id)
    found.resolve(digests)
  }

  function gone(how: string): void {
    running = undefined
    for (const { reject } of waiting.values())
      reject(new Failure('TRANSFER', `the source's process that computes digests ended (${how})`))
    waiting.clear()
  }

  return {
    hashed: () => hashed,
    async digests(asked, signal) {
      signal.throwIfAborted()
      if (over) throw new Failure('SOURCE_REFUSED', 'the session is over')
      const child = (running ??= startProcess(log, policy, hear, gone))
      const job = { id: nextId++, ...asked }
      const forget = (): void => {
        child.tell({ kind: 'forget', id: job.id })
        waiting.get(job.id)?.reject(signal.reason)
        waiting.delete(job.id)
      }
      signal.addEventListener('abort', forget, { once: true })
      try {
        return await new Promise<string[]>((resolve, reject) => {
          waiting.set(job.id, { job, digests: [], missing: job.count, resolve, reject })
          child.tell({ kind: 'hash', ...job })
        })
      } finally {
        signal.removeEventListener('abort', forget)
      }
    },
    async end() {
      over = true
      running?.kill()
      await running?.ended
    },
  }
}

/** @param gone called once, with the signal or exit status, when it ended however that was */
function startProcess(
  log: Log,
  { processors, rate }: HashingPolicy,
  hear: (word: FromHasher) => void,
  gone: (how: string) => void,
): Running {
  const name = import.meta.url.endsWith('.ts') ? './process.ts' : './process.js'
  const file = fileURLToPath(new URL(name, import.meta.url))
  const words = [processors === 'half' ? half() : processors, rate === 'off' ? 0 : rate].map(String)
  const node = [process.execPath, ...process.execArgv, file, ...words]
  // It dies with us, so that nobody reads a base that our successor is merging into.
  const child: ChildProcess = spawn(
    'setpriv',
    ['--pdeathsig', 'KILL', '--', ...LOW_PRIORITY, ...node],
    { stdio: ['ignore', 'ignore', 'pipe', 'ipc'] },
  )
  let said = ''
  child.stderr?.on('data', (chunk: Buffer) => (said = (said + chunk.toString()).slice(-2000)))
  log.debug({ pid: child.pid }, 'hashing')
  child.on('message', message => hear(message as FromHasher))
  const ended = new Promise<void>(resolve => {
    let told = false
    const end = (how: string): void => {
      if (told) return
      told = true
      log.debug({ pid: child.pid, how, said: said.trim().split('\n').at(-1) }, 'hashing ended')
      gone(how)
      resolve()
    }
    child.on('exit', (code, signal) => end(signal ?? `exit status ${String(code)}`))
    child.on('error', error => {
      // A word or a signal that does not reach it is followed by its end.
      if (child.pid === undefined) end(error.message)
    })
  })
  return {
    tell: word => {
      if (child.connected) child.send(word, () => undefined)
    },
    kill: () => child.kill('SIGKILL'),
    ended,
  }
}
