// The journal of a domain: one file, its first line the intent, then a line for each step, each fsynced before the step is
// done. It is the only state a source keeps; the next session of the domain replaces it.

import { readdir, readFile, truncate } from 'node:fs/promises'
import { z } from 'zod'
import { consistency, diskFormat } from '../../shared/gate.ts'
import { Failure } from '../../shared/failures.ts'
import { run } from '../../shared/host/run.ts'
import { appendDurably, fsyncPath, writeDurably } from '../../shared/host/durable.ts'

/** The journal's words: first those that every session passes through, in that order, then those of trouble. */
export const STEPS = [
  'intent',
  'freeze',
  'snapshot',
  'thaw',
  'frozen',
  'merge',
  'pivot',
  'clean',
  'done',
  'alarm',
  'suspend',
  'resume',
  'needs operator',
] as const
export type Step = (typeof STEPS)[number]

const intent = z.object({
  step: z.literal('intent'),
  at: z.iso.datetime(),
  session: z.string(),
  domain: z.string(),
  uuid: z.string(),
  recoveryPoint: z.string(),
  instant: z.iso.datetime(),
  disks: z.array(
    z.object({
      target: z.string(),
      format: diskFormat,
      base: z.string(),
      baseType: z.enum(['file', 'block']),
      overlay: z.string(),
      /** Inode of the overlay's directory: another one means that its file system is not mounted. */
      overlayPlace: z.number().optional(),
    }),
  ),
  inactiveXml: z.string(),
  liveXml: z.string(),
})
export type Intent = z.infer<typeof intent>
export type SessionDiskRecord = Intent['disks'][number]

const entry = z.object({
  step: z.enum(STEPS),
  at: z.iso.datetime(),
  target: z.string().optional(),
  consistency: consistency.optional(),
  reason: z.string().optional(),
  /** What an operator can type. */
  remedy: z.string().optional(),
  mergeMs: z.number().optional(),
  overlayBytes: z.number().optional(),
  /** The QEMU process that the step was done in; none for a domain that was off. */
  qemu: z.string().optional(),
  /** Whether libvirt's definition named the disk's overlay then. */
  definedOnOverlay: z.boolean().optional(),
  /** Milliseconds since the epoch at which each base was last written to, by target: they do not change while frozen. */
  baseWritten: z.record(z.string(), z.number()).optional(),
  freezeMs: z.number().optional(),
  snapshotMs: z.number().optional(),
})
export type Entry = z.infer<typeof entry>

/** More than a session records. */
const ROOM_BYTES = 256 * 1024

export interface Journal {
  readonly file: string
  readonly intent: Intent
  readonly entries: readonly Entry[]
}

export function journalFile(directory: string, domain: string): string {
  return `${directory}/${domain}.journal`
}

/** The domain's XML from before the session: the running domain's, or the definition of one that was off. */
export function definitionBefore({ intent }: Journal): string {
  return intent.liveXml === '' ? intent.inactiveXml : intent.liveXml
}

/** The domains that have a journal in this directory, in order. */
export async function journaledDomains(directory: string): Promise<string[]> {
  const files = await readdir(directory).catch(() => [])
  return files
    .filter(name => name.endsWith('.journal'))
    .map(name => name.slice(0, -'.journal'.length))
    .sort()
}

/** A journal that still has something to settle. */
export function isOpen(journal: Journal): boolean {
  return journal.entries.at(-1)?.step !== 'done'
}

export function hasStep(journal: Journal, step: Step, target?: string): boolean {
  return lastStep(journal, step, target) !== undefined
}

/** The last entry of a step, of one disk if a target is given. */
export function lastStep(journal: Journal, step: Step, target?: string): Entry | undefined {
  return journal.entries.findLast(
    one => one.step === step && (target === undefined || one.target === target),
  )
}

/**
 * Whether QEMU has lost a disk's overlay, with everything in the base. A merge that was begun after that counts for more: the
 * domain was started on the overlay again.
 */
export function isClean(journal: Journal, target: string): boolean {
  const last = journal.entries.findLast(
    one => one.target === target && (one.step === 'merge' || one.step === 'clean'),
  )
  return last?.step === 'clean'
}

/** Starts the journal of a new session, in place of the last one's. */
export async function startJournal(
  directory: string,
  record: Omit<Intent, 'step' | 'at'>,
): Promise<Journal> {
  const line: Intent = { step: 'intent', at: new Date().toISOString(), ...record }
  const file = journalFile(directory, record.domain)
  await writeDurably(file, `${JSON.stringify(line)}\n`, 0o600)
  // An overlay that fills this file system must not keep the steps of its own merge from being recorded.
  await run('fallocate', ['--keep-size', '--length', String(ROOM_BYTES), file])
  return { file, intent: line, entries: [] }
}

/** Records a step, fsynced; returns the journal with it. */
export async function recordStep(
  journal: Journal,
  step: Step,
  facts: Omit<Entry, 'step' | 'at'> = {},
): Promise<Journal> {
  const line: Entry = { step, at: new Date().toISOString(), ...facts }
  await appendDurably(journal.file, `${JSON.stringify(line)}\n`)
  return { ...journal, entries: [...journal.entries, line] }
}

/** Cuts off a torn last line, so that the next step starts a line of its own. Only in the domain's queue. */
export async function mendJournal(directory: string, domain: string): Promise<void> {
  const file = journalFile(directory, domain)
  const bytes = await readFile(file)
  const end = bytes.lastIndexOf(10) + 1
  if (end === bytes.length) return
  await truncate(file, end)
  await fsyncPath(file)
}

/**
 * Reads the journal of a domain; undefined when there is none. A torn last line (power cut during an append) is left
 * out: its step was not begun.
 * @throws Failure NEEDS_OPERATOR when the file is no journal
 */
export async function readJournal(directory: string, domain: string): Promise<Journal | undefined> {
  const file = journalFile(directory, domain)
  let text: string
  try {
    text = await readFile(file, 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
  const complete = text.slice(0, text.lastIndexOf('\n') + 1)
  try {
    const [first, ...rest] = complete.split('\n').filter(line => line !== '')
    return {
      file,
      intent: intent.parse(JSON.parse(first ?? '')),
      entries: rest.map(line => entry.parse(JSON.parse(line))),
    }
  } catch (error) {
    throw new Failure('NEEDS_OPERATOR', `the session journal ${file} cannot be read`, {
      cause: error,
      remedy: `check with virsh domblklist ${domain} that no disk is on an overlay, then move the file away`,
    })
  }
}
