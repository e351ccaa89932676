// A scripted NBD server for faults that a real one cannot be made to show: on a Unix socket, or in this process.

import { mkdtempSync, rmSync } from 'node:fs'
import { createServer, type Server } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Duplex } from 'node:stream'
import { ack, exportInfo, greeting } from './wire.ts'

export interface SeenRequest {
  type: number
  cookie: number
  offset: number
  length: number
}

export interface Script {
  greeting?: Buffer
  /** Answer to an option; by default structured replies and GO are granted, and the export has 1 MiB. */
  option?: ((option: number, data: Buffer, peer: Duplex) => Buffer | undefined) | undefined
  request?: (request: SeenRequest, peer: Duplex) => void
}

interface TestLike {
  teardown(step: () => void): void
}

/** What this server has understood so far. */
export interface Seen {
  clientFlags: number | undefined
  options: number[]
  requests: SeenRequest[]
}

export function granted(option: number, size: number): Buffer | undefined {
  if (option === 8) return ack(8)
  if (option === 7 || option === 6) return Buffer.concat([exportInfo(option, size), ack(option)])
  return undefined
}

/** Serves one connection over any duplex. */
export function serve(peer: Duplex, script: Script): Seen {
  const seen: Seen = { clientFlags: undefined, options: [], requests: [] }
  let rest = Buffer.alloc(0)
  let transmission = false
  peer.on('error', () => undefined)
  peer.on('data', (part: Buffer) => {
    rest = Buffer.concat([rest, part])
    for (;;) {
      if (seen.clientFlags === undefined) {
        if (rest.length < 4) return
        seen.clientFlags = rest.readUInt32BE()
        rest = rest.subarray(4)
      } else if (!transmission) {
        if (rest.length < 16 || rest.length < 16 + rest.readUInt32BE(12)) return
        const option = rest.readUInt32BE(8)
        const content = rest.subarray(16, 16 + rest.readUInt32BE(12))
        rest = rest.subarray(16 + content.length)
        seen.options.push(option)
        if (option === 7) transmission = true
        const answer = (script.option ?? (code => granted(code, 2 ** 20)))(option, content, peer)
        if (answer) peer.write(answer)
      } else {
        if (rest.length < 28) return
        const request = {
          type: rest.readUInt16BE(6),
          cookie: Number(rest.readBigUInt64BE(8)),
          offset: Number(rest.readBigUInt64BE(16)),
          length: rest.readUInt32BE(24),
        }
        rest = rest.subarray(28)
        seen.requests.push(request)
        script.request?.(request, peer)
      }
    }
  })
  peer.write(script.greeting ?? greeting())
  return seen
}

/** A temporary directory that goes with the test. */
export function temporary(t: TestLike): string {
  const folder = mkdtempSync(join(tmpdir(), 'nbd-test-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

/** Listens on a Unix socket for the length of the test; `seen` is of the newest connection. */
export async function listen(
  t: TestLike,
  script: Script,
): Promise<{ path: string; seen: () => Seen | undefined; server: Server; open: () => number }> {
  const path = join(temporary(t), 'nbd.sock')
  let seen: Seen | undefined
  const peers = new Set<Duplex>()
  const server = createServer(peer => {
    peers.add(peer)
    peer.once('close', () => peers.delete(peer))
    seen = serve(peer, script)
  })
  await new Promise<void>(resolve => server.listen(path, resolve))
  t.teardown(() => {
    for (const peer of peers) peer.destroy()
    server.close()
  })
  return { path, seen: () => seen, server, open: () => peers.size }
}

/** Two ends of a pipe in this process; each delivers at once, as hard as a stream can. */
export function pair(): [Duplex, Duplex] {
  const ended = [false, false]
  const deliver = (to: number, part: Buffer | null): void => {
    if (ended[to] || ends[to]?.destroyed) return
    ended[to] = part === null
    ends[to]?.push(part)
  }
  const ends: Duplex[] = [1, 0].map(
    other =>
      new Duplex({
        read: () => undefined,
        write: (part: Buffer, _encoding, done) => {
          deliver(other, part)
          done()
        },
        final: done => {
          deliver(other, null)
          done()
        },
        destroy: (cause, done) => {
          deliver(other, null)
          done(cause)
        },
      }),
  )
  return ends as [Duplex, Duplex]
}
