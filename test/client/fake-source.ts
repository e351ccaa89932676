// A source for tests of the standby: a gate that speaks real JSON-RPC through a real child, and nbdkit for the bytes.

import { spawn, type ChildProcess } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { mkdir, mkdtemp, open as openFile, rm, stat, writeFile } from 'node:fs/promises'
import { createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { MessageConnection } from 'vscode-jsonrpc/node.js'
import { CHUNK_SIZE, chunkCount, chunkLength } from '../../shared/chunks.ts'
import type { FailureCode } from '../../shared/failures.ts'
import { Failure } from '../../shared/failures.ts'
import {
  GATE,
  SESSION_ENDED,
  type GateMethod,
  type GateParams,
  type GateResult,
} from '../../shared/gate.ts'
import { newRecoveryPointId } from '../../shared/names.ts'
import { failureToResponse, rpcConnection } from '../../shared/rpc.ts'
import { isListening } from '../nbd/listening.ts'

export const TOKEN = 'a'.repeat(32)
export const HOST_ID = '6b0f2d7e-3b57-4c83-9e0c-2f1f0f4b6a01'
export const DOMAIN_UUID = '0d3b9a52-7a0e-4a53-8f4e-6f0d6b2b7c11'

type Handlers = {
  [M in GateMethod]: (params: GateParams<M>) => GateResult<M> | Promise<GateResult<M>>
}

export interface FakeSource extends AsyncDisposable {
  /** A private folder; `store/` in it is the standby's. */
  readonly dir: string
  readonly store: string
  readonly configFile: string
  /** The methods called so far, in order. */
  readonly calls: string[]
  /** How many gates are connected now. */
  gates(): number
  /** What the gate answers; tests replace single ones. */
  readonly handlers: Handlers
  /** Ends the session under the standby. */
  end(code: FailureCode, reason: string): void
  /** SIGKILLs the NBD server. */
  killNbd(): void
  /** Starts the NBD server anew. @param filters nbdkit arguments, filters and parameters */
  serveNbd(filters?: readonly string[], nbdOpen?: string): Promise<void>
  file(target: string): string
}

/** nbdkit's eval plugin lets the export name choose the file: one server for all disks, refusing by exit status. */
function evalArguments(dir: string, open: string): string[] {
  const f = `${dir}/$2.raw`
  return [
    'eval',
    'thread_model=echo parallel',
    `open=${open} n="\${3#*/}"; echo "\${n%@*}"`,
    `get_size=stat -c %s "${f}"`,
    `pread=dd if="${f}" iflag=skip_bytes,count_bytes,fullblock bs=1M skip="$4" count="$3" status=none`,
  ]
}

/** @param disks target -> content */
export async function fakeSource(disks: Readonly<Record<string, Buffer>>): Promise<FakeSource> {
  const dir = await mkdtemp(path.join(tmpdir(), 'nbd-clone-test-'))
  const store = path.join(dir, 'store')
  const configFile = path.join(dir, 'standby.yaml')
  const images = path.join(dir, 'images')
  await mkdir(images)
  for (const [target, content] of Object.entries(disks))
    await writeFile(path.join(images, `${target}.raw`), content)
  const file = (target: string): string => path.join(images, `${target}.raw`)
  const nbdSocket = path.join(dir, 'nbd.sock')
  const gateSocket = path.join(dir, 'gate.sock')

  let nbd: ChildProcess | undefined
  const killNbd = (): void => {
    nbd?.kill('SIGKILL')
    nbd = undefined
  }
  const serveNbd = async (filters: readonly string[] = [], nbdOpen = ''): Promise<void> => {
    killNbd()
    await rm(nbdSocket, { force: true })
    const names = filters.filter(one => one.startsWith('--'))
    const parameters = filters.filter(one => !one.startsWith('--'))
    const args = ['-f', '-r', '-U', nbdSocket, ...names, ...evalArguments(images, nbdOpen)]
    nbd = spawn('nbdkit', [...args, ...parameters], {
      stdio: 'ignore',
      env: { PATH: process.env['PATH'] },
    })
    while (!isListening(nbdSocket)) await sleep(10)
  }
  await serveNbd()

  const recoveryPoint = {
    id: newRecoveryPointId(new Date(0)),
    instant: new Date(0).toISOString(),
    consistency: 'quiesced' as const,
  }
  const targets = Object.keys(disks)
  const sizeOf = async (target: string): Promise<number> => (await stat(file(target))).size
  const allocatedOf = async (target: string): Promise<number> => {
    const { blocks, size } = await stat(file(target))
    return Math.min(size, blocks * 512)
  }
  const handlers: Handlers = {
    hello: () => ({
      protocol: 1,
      version: '0.1.0',
      clockMs: Date.now(),
      hostId: HOST_ID,
      role: 'source',
      epoch: 0,
      features: ['digests'],
    }),
    describe: async () => ({
      domain: 'mydomain',
      uuid: DOMAIN_UUID,
      state: 'running',
      disks: [
        ...(await Promise.all(
          targets.map(async target => ({
            target,
            exported: true,
            format: 'raw' as const,
            size: await sizeOf(target),
            allocated: await allocatedOf(target),
          })),
        )),
        { target: 'sda', exported: false, reason: 'cdrom' },
      ],
    }),
    'session.open': () => {
      const now = new Date()
      // As those of a source, a domain's recovery points are in the order of their names.
      let id = newRecoveryPointId(now)
      while (id <= recoveryPoint.id) id = newRecoveryPointId(new Date())
      Object.assign(recoveryPoint, { id, instant: now.toISOString() })
      return { token: TOKEN, session: 'session-1', joined: false }
    },
    'session.renew': () => ({}),
    'session.info': async () => ({
      recoveryPoint: { ...recoveryPoint },
      uuid: DOMAIN_UUID,
      disks: await Promise.all(
        targets.map(async target => ({
          target,
          format: 'raw' as const,
          size: await sizeOf(target),
        })),
      ),
      inactiveXml: `<domain><name>mydomain</name><uuid>${DOMAIN_UUID}</uuid></domain>\n`,
      liveXml: `<domain id="1"><name>mydomain</name><uuid>${DOMAIN_UUID}</uuid></domain>\n`,
      nvram: Buffer.from('variables').toString('base64'),
      networks: [{ name: 'default', xml: '<network><name>default</name></network>' }],
      pools: [],
      host: {
        libvirt: '9.0.0',
        qemu: '7.2.0',
        arch: 'x86_64',
        machine: 'pc-q35-7.2',
        cpu: 'qemu64',
      },
      freezeMs: 10,
      snapshotMs: 20,
    }),
    'session.release': () => ({ recoveryPoint: recoveryPoint.id }),
    digests: async ({ target, chunk, count }) => ({
      digests: await digestsOf(file(target), chunk, count).catch(unreadable),
    }),
    allocation: () => ({ reason: 'it is a fake', extents: [], next: null }),
    changes: () => ({ reason: 'it is a fake', extents: [], next: null }),
    acknowledge: () => ({}),
    outcome: () => ({ state: 'merged', disks: [], refusals: [] }),
  }

  const calls: string[] = []
  const open = new Map<Socket, MessageConnection>()
  const server = createServer(socket => {
    const rpc = rpcConnection(socket, socket)
    open.set(socket, rpc)
    socket.on('close', () => open.delete(socket)).on('error', () => undefined)
    for (const method of Object.keys(GATE) as GateMethod[])
      rpc.onRequest(method, async (params: unknown) => {
        calls.push(method)
        try {
          const handler = handlers[method] as (params: unknown) => unknown
          return await handler(GATE[method].params.parse(params))
        } catch (error) {
          return failureToResponse(error)
        }
      })
    rpc.listen()
  })
  server.listen(gateSocket)
  await once(server, 'listening')

  // The child that the standby starts: a relay, as `clone-server gate` is one.
  const relay =
    'const s=require("net").connect(process.argv[1]);process.stdin.pipe(s);s.pipe(process.stdout)'
  const command = ['env', '-u', 'NODE_OPTIONS', process.execPath, '-e', relay, gateSocket]
  await writeFile(
    configFile,
    `store: ${store}\n` +
      `defaults: { rpo: 4h, keep: { last: 2 }, stall: 5s, generations: copy }\n` +
      `sources: { alpha: { transport: unix, socket: ${nbdSocket}, gateCommand: ${JSON.stringify(command)} } }\n` +
      `domains: { mydomain: { source: alpha } }\n`,
  )

  return {
    dir,
    store,
    configFile,
    calls,
    gates: () => open.size,
    handlers,
    end(code, reason) {
      for (const rpc of open.values())
        void rpc.sendNotification(SESSION_ENDED, { token: TOKEN, reason, code })
    },
    killNbd,
    serveNbd,
    file,
    async [Symbol.asyncDispose]() {
      killNbd()
      for (const socket of open.keys()) socket.destroy()
      server.close()
      await rm(dir, { recursive: true, force: true })
    },
  }
}

/** SHA-256 of each chunk as the file is now. */
async function digestsOf(file: string, chunk: number, count: number): Promise<string[]> {
  const { size } = await stat(file)
  if (chunk + count > chunkCount(size))
    throw new Failure('USAGE', `${file} has ${chunkCount(size)} chunks`)
  const image = await openFile(file)
  try {
    const digests: string[] = []
    for (let one = chunk; one < chunk + count; one++) {
      const bytes = Buffer.alloc(chunkLength(size, one))
      await image.read(bytes, 0, bytes.length, one * CHUNK_SIZE)
      digests.push(createHash('sha256').update(bytes).digest('hex'))
    }
    return digests
  } finally {
    await image.close()
  }
}

/** What the real source says of a base that it cannot read. */
function unreadable(error: unknown): never {
  if (error instanceof Failure) throw error
  const { message, path: base = 'it' } = error as NodeJS.ErrnoException
  throw new Failure('TRANSFER', `the source cannot read ${base}: ${message}`, { cause: error })
}

/** An answer of the gate that is a failure. */
export function refusing(code: FailureCode, reason: string): () => never {
  return () => {
    throw new Failure(code, reason)
  }
}
