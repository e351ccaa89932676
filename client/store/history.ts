// history.jsonl: one line per attempt, each carrying the SHA-256 of the line before, so that nothing vanishes unseen.

import { createHash } from 'node:crypto'
import { open, readFile } from 'node:fs/promises'
import { appendDurably } from '../../shared/host/durable.ts'
import type { Layout } from './layout.ts'

/** What was planned for one disk, and why. */
export interface HistoryDisk {
  readonly target: string
  readonly kind: string
  readonly reason: string
  /** Bytes. */
  readonly size: number
  /** The generation that it was built upon. */
  readonly basis?: string
}

/** One attempt. Whatever is optional was not reached, or is younger than the line. */
export interface HistoryLine {
  readonly schema: 1
  /** When the attempt began and ended, this host's clock. */
  readonly began: string
  readonly ended: string
  readonly outcome: 'merged' | 'kept' | 'imported' | 'failed'
  readonly code?: string
  readonly message?: string
  /** The generation published, also when the merge failed after it. */
  readonly seq?: number
  readonly recoveryPoint?: string
  readonly session?: string
  readonly plan?: readonly HistoryDisk[]
  /** Disks that the domain or the newest generation has and this one has not, and why. */
  readonly omitted?: readonly { readonly target: string; readonly reason: string }[]
  /** How generations are kept: `reflink`, `copy`, `in-place`. */
  readonly method?: string
  /** What had to agree before it was published. */
  readonly verify?: string
  /** Connections lost and made again within the session. */
  readonly reconnects?: number
  readonly bytes: HistoryBytes
  /** Phase -> seconds. */
  readonly seconds: Readonly<Record<string, number>>
}

export interface HistoryBytes {
  /** Over NBD. */
  readonly read: number
  readonly written: number
  /** In chunks that differ from the basis. */
  readonly changed?: number
  /** By the source, for us. */
  readonly hashed?: number
  /** Taken from an interrupted pull. */
  readonly reused?: number
}

const sha256 = (text: Buffer): string => createHash('sha256').update(text).digest('hex')

/** Longest line that is looked for when chaining. */
const TAIL = 1024 * 1024

/** Appends a line durably, chained to the one before. A line torn by a power cut is closed and chained over as it is. */
export async function appendHistory(layout: Layout, line: HistoryLine): Promise<void> {
  const tail = await readTail(layout.history)
  const torn = tail.length > 0 && tail.at(-1) !== 10
  const whole = torn ? tail : tail.subarray(0, -1)
  const last = whole.subarray(whole.lastIndexOf(10) + 1)
  const previous = last.length === 0 ? null : sha256(last)
  const text = JSON.stringify({ previous, ...line })
  await appendDurably(layout.history, `${torn ? '\n' : ''}${text}\n`)
}

async function readTail(file: string): Promise<Buffer> {
  const handle = await open(file, 'r').catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  })
  if (!handle) return Buffer.alloc(0)
  try {
    const { size } = await handle.stat()
    const length = Math.min(size, TAIL)
    const { buffer, bytesRead } = await handle.read(Buffer.alloc(length), 0, length, size - length)
    return buffer.subarray(0, bytesRead)
  } finally {
    await handle.close()
  }
}

export interface HistoryProblem {
  /** From 1. */
  readonly line: number
  readonly why: string
}
export interface HistoryCheck {
  readonly lines: number
  /** Attempts that published a generation. */
  readonly published: number
  /** Lines that a power cut tore while they were written; the next one continues the chain over them. */
  readonly torn: readonly number[]
  readonly problems: readonly HistoryProblem[]
}

/**
 * Checks that no line was edited or removed, and that sequence numbers only grow.
 * @param attempts how many state.json counts: more than there are lines means that the last ones are missing
 */
export async function checkHistory(layout: Layout, attempts = 0): Promise<HistoryCheck> {
  const lines = await readLines(layout.history)
  const unended = lines.pop() !== ''
  const problems: HistoryProblem[] = []
  const torn: number[] = []
  const points = new Map<string, number>()
  let lastSeq = 0
  let published = 0
  lines.forEach((text, at) => {
    const line = at + 1
    const complain = (why: string): unknown => problems.push({ line, why })
    const parsed = parseLine(text)
    if (!parsed) {
      const next = parseLine(lines[line] ?? '')
      if (next?.previous === hashOf(text)) torn.push(line)
      else complain('not a line of history')
      return
    }
    const before = lines[at - 1]
    if (parsed.previous !== (before === undefined ? null : hashOf(before)))
      complain('does not continue the chain')
    const { seq, recoveryPoint } = parsed
    if (seq === undefined) return
    published++
    if (seq <= lastSeq) complain(`published seq ${seq} after ${lastSeq}`)
    lastSeq = Math.max(lastSeq, seq)
    if (recoveryPoint === undefined) return
    const earlier = points.get(recoveryPoint)
    if (earlier !== undefined) complain(`published ${recoveryPoint} again, after line ${earlier}`)
    points.set(recoveryPoint, line)
  })
  if (unended) torn.push(lines.length + 1)
  const count = lines.length + (unended ? 1 : 0)
  if (count < attempts) {
    const why = `missing: state.json counts ${attempts} attempts, and there are ${count} lines`
    problems.push({ line: count + 1, why })
  }
  return { lines: count, published, torn, problems }
}

/** A byte a character, so that a torn line hashes as it was chained. The last one is empty, or torn. */
async function readLines(file: string): Promise<string[]> {
  try {
    return (await readFile(file, 'latin1')).split('\n')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return ['']
    throw error
  }
}

const hashOf = (line: string): string => sha256(Buffer.from(line, 'latin1'))

/** What chains a line, and what it published; lines of every version have these. */
function parseLine(
  text: string,
): { previous: unknown; seq?: number; recoveryPoint?: string } | undefined {
  try {
    const line: unknown = JSON.parse(text)
    if (typeof line !== 'object' || line === null || !('previous' in line)) return undefined
    const { previous, seq, recoveryPoint } = line as Record<string, unknown>
    return {
      previous,
      ...(typeof seq === 'number' && { seq }),
      ...(typeof recoveryPoint === 'string' && { recoveryPoint }),
    }
  } catch {
    return undefined
  }
}
