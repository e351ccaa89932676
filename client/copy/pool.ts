// The worker threads and the one shared memory of chunk slots that they and the NBD connections work in.

import { Worker } from 'node:worker_threads'
import { Failure } from '../../shared/failures.ts'
import { CHUNK_SIZE } from '../plan.ts'
import type { Answer, Job, Outcome } from './worker.ts'

/** @types/node leaves this global to the browser's types, which we do not want. */
declare const WebAssembly: {
  Memory: new (pages: { initial: number; maximum: number; shared: true }) => {
    readonly buffer: SharedArrayBuffer
  }
}

/** Reading back blocks a thread, so there are some to hash while others wait for the medium. */
const MAX_THREADS = 4
/** Chunks that make another thread worth its start. */
const CHUNKS_PER_THREAD = 16
/** 32 MiB of payload under way: 16 requests in flight for each of two disks. */
const SLOTS = 32
const WASM_PAGE = 64 * 1024

export interface Pool extends AsyncDisposable {
  /** Chunk-sized and page-aligned, in shared memory. */
  readonly slots: readonly Uint8Array[]
  /** Runs a job on the least busy thread. Rejects with the errno error of its file operation. */
  run(job: Job): Promise<Outcome>
}

/** Never the source: under a TypeScript loader, each thread would load a compiler first, for more than a second. */
const COMPILED = new URL(
  import.meta.url.endsWith('.ts') ? '../../dist/client/copy/worker.js' : './worker.js',
  import.meta.url,
)
const NO_OPTIONS = { ...process.env, NODE_OPTIONS: '' }

interface Waiting {
  readonly resolve: (outcome: Outcome) => void
  readonly reject: (error: Error) => void
}

/** Starts the threads; disposing ends them, whatever they are doing. @param chunks of work to come; may be Infinity */
export function openPool(chunks: number): Pool {
  // Memory of WebAssembly is page-aligned, which O_DIRECT needs, and can be shared between threads.
  const pages = (SLOTS * CHUNK_SIZE) / WASM_PAGE
  const { buffer } = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true })
  const threads = Array.from({ length: threadCount(chunks) }, () => {
    const worker = new Worker(COMPILED, { workerData: buffer, execArgv: [], env: NO_OPTIONS })
    const waiting = new Map<number, Waiting>()
    let dead: Error | undefined
    const die = (error: Error): void => {
      dead ??= error
      for (const { reject } of waiting.values()) reject(dead)
      waiting.clear()
    }
    worker.on('message', (answer: Answer) => {
      const { resolve, reject } = waiting.get(answer.id) ?? {}
      waiting.delete(answer.id)
      if ('error' in answer)
        reject?.(Object.assign(new Error(answer.error.message), { code: answer.error.code }))
      else resolve?.(answer)
    })
    worker.on('error', error => die(error))
    worker.on('exit', code => die(new Failure('INTERNAL', `a copy thread ended with ${code}`)))
    return { worker, waiting, dead: () => dead }
  })
  let nextId = 0

  return {
    slots: Array.from({ length: SLOTS }, (_, at) => {
      return new Uint8Array(buffer, at * CHUNK_SIZE, CHUNK_SIZE)
    }),
    run(job) {
      const thread = threads.reduce((a, b) => (b.waiting.size < a.waiting.size ? b : a))
      const dead = thread.dead()
      if (dead) return Promise.reject(dead)
      return new Promise((resolve, reject) => {
        const id = nextId++
        thread.waiting.set(id, { resolve, reject })
        thread.worker.postMessage({ id, job })
      })
    },
    async [Symbol.asyncDispose]() {
      await Promise.all(threads.map(({ worker }) => worker.terminate()))
    },
  }
}

function threadCount(chunks: number): number {
  return Math.min(MAX_THREADS, Math.max(1, Math.ceil(chunks / CHUNKS_PER_THREAD)))
}
