// history.jsonl: one line per attempt, each carrying the SHA-256 of the line before, so that nothing vanishes unseen.

import { createHash } from 'node:crypto'
import { open, readFile } from 'node:fs/promises'
import { appendDurably } from '../../shared/host/durable.ts'
import type { DiskPlan } from '../plan.ts'
import type { Layout } from './layout.ts'

export interface HistoryLine {
  readonly schema: 1
  /** When the attempt began and ended, this host's clock. */
  readonly began: string
  readonly ended: string
  readonly outcome: 'merged' | 'kept' | 'failed'
  readonly code?: string
  readonly message?: string
  /** The generation published, also when the merge failed after it. */
  readonly seq?: number
  readonly recoveryPoint?: string
  readonly session?: string
  readonly plan?: readonly Omit<DiskPlan, 'chunks'>[]
  readonly bytes: Readonly<Record<'read' | 'written' | 'changed' | 'hashed' | 'reused', number>>
  readonly method?: string
  readonly verify?: string
  /** Phase -> seconds. */
  readonly seconds: Readonly<Record<string, number>>
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

/** Line numbers (from 1) whose `previous` does not match the line before: edited or removed lines. */
export async function brokenLinks(layout: Layout): Promise<number[]> {
  // A byte a character, so that a torn line hashes as it was chained.
  const lines = (await readFile(layout.history, 'latin1').catch(() => '')).split('\n')
  lines.pop()
  const broken: number[] = []
  lines.forEach((line, at) => {
    const before = lines[at - 1]
    const expected = before === undefined ? null : sha256(Buffer.from(before, 'latin1'))
    try {
      if ((JSON.parse(line) as { previous: unknown }).previous !== expected) broken.push(at + 1)
    } catch {
      broken.push(at + 1)
    }
  })
  return broken
}
