// The thread behind a recorded disk: an NBD server over one file that keeps every write and flush in order, and can be told
// to fail. A thread of its own, because the thread under test may wait for this disk in a blocking call.

import { openSync, readSync, writeSync } from 'node:fs'
import { createServer, type Socket } from 'node:net'
import { parentPort, workerData } from 'node:worker_threads'
import { ack, exportInfo, greeting, refusal, simple } from '../nbd/wire.ts'
import { FAILING, type Failing } from './failing.ts'

/** What a disk was told, in order. Zeros are kept as a length only. */
export type Event =
  | { readonly kind: 'write'; readonly offset: number; readonly data: Uint8Array }
  | { readonly kind: 'zero'; readonly offset: number; readonly length: number }
  | { readonly kind: 'flush' }
  | { readonly kind: 'mark'; readonly what: string }

/** `mark` is answered with the number of events so far, `events` with all of them. */
export type Order = { readonly kind: 'mark'; readonly what: string } | { readonly kind: 'events' }

export interface RecordedDisk {
  readonly file: string
  readonly socket: string
  readonly size: number
  /** Whether the events are kept; else only the disk is. */
  readonly kept: boolean
  /** What fails, as its place in FAILING: shared memory, so that it is so as soon as it is said. */
  readonly failing: Int32Array
}

const EIO = 5
const HAS_FLAGS_AND_FLUSH = 1 | (1 << 2)
const [OPT_GO, OPT_INFO, OPT_ABORT] = [7, 6, 2]
const [READ, WRITE, DISCONNECT, FLUSH] = [0, 1, 2, 3]

const disk = workerData as RecordedDisk
const fd = openSync(disk.file, 'r+')
const events: Event[] = []
const failing = (): Failing => FAILING[Atomics.load(disk.failing, 0)] ?? 'nothing'

function write(offset: number, data: Buffer): void {
  writeSync(fd, data, 0, data.length, offset)
  if (!disk.kept) return
  const zero = data.every(byte => byte === 0)
  events.push(
    zero
      ? { kind: 'zero', offset, length: data.length }
      : { kind: 'write', offset, data: Buffer.from(data) },
  )
}

/** One request. @returns its reply, and how many bytes it took; undefined while it has not come whole */
function answer(bytes: Buffer): { reply: Buffer | undefined; taken: number } | undefined {
  if (bytes.length < 28) return undefined
  const type = bytes.readUInt16BE(6)
  const cookie = bytes.readBigUInt64BE(8)
  const offset = Number(bytes.readBigUInt64BE(16))
  const length = bytes.readUInt32BE(24)
  const payload = type === WRITE ? length : 0
  if (bytes.length < 28 + payload) return undefined
  const taken = 28 + payload
  const fails = failing() === (type === READ ? 'reads' : 'writes')
  if (type === DISCONNECT) return { reply: undefined, taken }
  if (fails) return { reply: simple(cookie, EIO), taken }
  if (type === READ) {
    const data = Buffer.alloc(length)
    readSync(fd, data, 0, length, offset)
    return { reply: simple(cookie, 0, data), taken }
  }
  if (type === WRITE) write(offset, bytes.subarray(28, taken))
  if (type === FLUSH) events.push({ kind: 'flush' })
  return { reply: simple(cookie, 0), taken }
}

/** One option of the negotiation, like a request. */
function haggle(bytes: Buffer): { reply: Buffer; taken: number; done: boolean } | undefined {
  if (bytes.length < 16 || bytes.length < 16 + bytes.readUInt32BE(12)) return undefined
  const option = bytes.readUInt32BE(8)
  const taken = 16 + bytes.readUInt32BE(12)
  if (option === OPT_ABORT) return { reply: ack(option), taken, done: false }
  if (option !== OPT_GO && option !== OPT_INFO)
    return { reply: refusal(option, 1), taken, done: false }
  const reply = Buffer.concat([exportInfo(option, disk.size, HAS_FLAGS_AND_FLUSH), ack(option)])
  return { reply, taken, done: option === OPT_GO }
}

function serve(peer: Socket): void {
  let parts: Buffer[] = []
  let step: 'flags' | 'options' | 'requests' = 'flags'
  peer.on('error', () => undefined)
  peer.on('data', (part: Buffer) => {
    parts.push(part)
    let bytes = Buffer.concat(parts)
    for (;;) {
      if (step === 'flags') {
        if (bytes.length < 4) break
        bytes = bytes.subarray(4)
        step = 'options'
        continue
      }
      const done = step === 'options' ? haggle(bytes) : answer(bytes)
      if (!done) break
      if (done.reply) peer.write(done.reply)
      if ('done' in done && done.done) step = 'requests'
      bytes = bytes.subarray(done.taken)
    }
    parts = [bytes]
  })
  peer.write(greeting())
}

parentPort?.on('message', (order: Order) => {
  if (order.kind === 'mark') events.push(order)
  parentPort?.postMessage(order.kind === 'events' ? events : events.length)
})
createServer(serve).listen(disk.socket, () => parentPort?.postMessage('ready'))
