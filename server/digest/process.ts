// The process that hashes a session's frozen bases: a child of serve, told what to read and answering chunk by chunk over
// Node's channel. It reads past the page cache, which belongs to the guests, and hashes in as many threads and reads as much a
// second as it is told to: process.js PROCESSORS RATE

import { constants } from 'node:fs'
import { open, type FileHandle } from 'node:fs/promises'
import { Worker } from 'node:worker_threads'
import { CHUNK_SIZE, chunkLength } from '../../shared/chunks.ts'
import { createRate } from '../../shared/rate.ts'
import type { Answer, Question } from './hash-thread.ts'
import { HASHER, READS, type FromHasher, type HashJob, type ToHasher } from './words.ts'

const [processors = 1, perSecond = 0] = process.argv.slice(2).map(Number)
/** Each has a slot that it reads a chunk into, and waits for its digest: enough for all threads and some reads beside. */
const LANES = READS + processors - 1
const WASM_PAGE = 64 * 1024

/** @types/node leaves this global to the browser's types, which we do not want. */
declare const WebAssembly: {
  Memory: new (pages: { initial: number; maximum: number; shared: true }) => {
    readonly buffer: SharedArrayBuffer
  }
}

// Memory of WebAssembly is page-aligned, which O_DIRECT needs.
const pages = (LANES * CHUNK_SIZE) / WASM_PAGE
const { buffer: memory } = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true })
const slots = Array.from({ length: LANES }, (_, at) =>
  Buffer.from(memory, at * CHUNK_SIZE, CHUNK_SIZE),
)
const rate = createRate(() => (perSecond > 0 ? perSecond : undefined))
const forever = new AbortController().signal

/** What each lane waits for. */
const answers = new Map<number, (digest: string) => void>()
const threadName = import.meta.url.endsWith('.ts') ? './hash-thread.ts' : './hash-thread.js'
const threads = Array.from({ length: processors }, () => {
  const thread = new Worker(new URL(threadName, import.meta.url), { workerData: memory })
  thread.on('message', ({ lane, digest }: Answer) => answers.get(lane)?.(digest))
  return thread
})

function digestOf(question: Question): Promise<string> {
  return new Promise(resolve => {
    answers.set(question.lane, resolve)
    threads[question.lane % processors]?.postMessage(question)
  })
}

interface Reader {
  readonly buffered: FileHandle
  /** Undefined where the file system knows no direct I/O. */
  readonly direct: FileHandle | undefined
}

async function openBase(base: string): Promise<Reader> {
  const buffered = await open(base, constants.O_RDONLY)
  const direct = await open(base, constants.O_RDONLY | constants.O_DIRECT).catch(() => undefined)
  return { buffered, direct }
}

/** Fills the first `length` bytes from a chunk. @throws the errno error of the read; when the file ends before */
async function readChunk(
  { buffered, direct }: Reader,
  slot: Buffer,
  chunk: number,
  length: number,
): Promise<void> {
  let file = direct ?? buffered
  for (let done = 0; done < length;) {
    try {
      const at = chunk * CHUNK_SIZE + done
      const { bytesRead } = await file.read(slot, done, CHUNK_SIZE - done, at)
      if (bytesRead === 0) throw new Error('it is shorter than it was when the domain was frozen')
      done += bytesRead
    } catch (error) {
      // Direct I/O wants whole sectors, which what is left of a file may not be.
      if (file === buffered || (error as NodeJS.ErrnoException).code !== 'EINVAL') throw error
      file = buffered
    }
  }
}

const forgotten = new Set<number>()
const queue: HashJob[] = []
let current: number | undefined

function tell(word: FromHasher): void {
  // A parent that has gone hears nothing, and its children are killed.
  process.send?.(word, undefined, undefined, () => undefined)
}

async function hash({ id, base, size, chunk, count }: HashJob): Promise<void> {
  const reader = await openBase(base)
  const end = chunk + count
  let next = chunk
  try {
    const lanes = slots.map(async (slot, lane) => {
      while (next < end && !forgotten.has(id)) {
        const mine = next++
        const length = chunkLength(size, mine)
        await rate.take(length, forever)
        await readChunk(reader, slot, mine, length)
        tell({ id, chunk: mine, digest: await digestOf({ lane, length }) })
      }
    })
    for (const lane of lanes) lane.catch(() => (next = end))
    // A slot must not be read into any more when the next job begins.
    const ended = await Promise.allSettled(lanes)
    for (const one of ended) if (one.status === 'rejected') throw one.reason
  } finally {
    await reader.buffered.close()
    await reader.direct?.close()
  }
}

/** One job after the other: who asks for two disks at once wants both, and a medium is read best in order. */
async function work(): Promise<void> {
  if (current !== undefined) return
  for (let job = queue.shift(); job; job = queue.shift()) {
    const { id } = job
    current = id
    await hash(job).catch((error: unknown) =>
      tell({ id, error: error instanceof Error ? error.message : String(error) }),
    )
    forgotten.delete(id)
  }
  current = undefined
}

// By this name recovery knows it, before it opens anything.
process.title = HASHER
process.on('message', (word: ToHasher) => {
  if (word.kind === 'hash') {
    queue.push(word)
    void work()
  } else if (word.id === current || queue.some(job => job.id === word.id)) forgotten.add(word.id)
})
