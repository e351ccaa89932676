// What every row works on: a folder, the images, a real nbd-server on a Unix socket, and the gate for our own pull.

import { spawn, type ChildProcess } from 'node:child_process'
import { randomFillSync } from 'node:crypto'
import { mkdtemp, open, rm, stat, statfs, symlink, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import path from 'node:path'
import { loadConfig } from '../../client/config/effective.ts'
import type { Cleanup } from '../../shared/cleanup.ts'
import { Failure } from '../../shared/failures.ts'
import { exportName } from '../../shared/names.ts'
import { formatSize } from '../../shared/quantities.ts'
import { readAllocation } from '../../server/session/allocation.ts'
import { fakeSource, TOKEN, type FakeSource } from '../client/fake-source.ts'
import { childEnvironment } from '../lab/environment.ts'
import { runGroup } from './measure.ts'

const MIB = 1024 ** 2
const GIB = 1024 ** 3
/** The image, one copy of it as qcow2, one row's output, and the sparse image. */
export const SPACE = 12 * GIB
/** The generated store alone. */
export const STORE_SPACE = 256 * MIB

/** A disk image by where its random data lies; all else is holes. */
export interface Shape {
  readonly size: number
  /** Bytes of data at the start of every `every` bytes. */
  readonly data: number
  readonly every: number
}
/** Half dense, half sparse. */
export const HALF: Shape = { size: 4 * GIB, data: 2 * GIB, every: 4 * GIB }
export const WIDE: Shape = { size: 64 * GIB, data: 64 * MIB, every: 2 * GIB }

/** One image, served. */
export interface Served {
  readonly image: string
  /** For stock clients. */
  readonly uri: string
  /** Configuration for `clone pull mydomain`. */
  readonly config: string
  /** What is in it. */
  readonly configText: string
  /** Where that puts its clones. */
  readonly store: string
  /** What the gate answers. */
  readonly handlers: FakeSource['handlers']
  /** Of the tests' gate: argv. */
  readonly gateCommand: readonly string[]
  /** Of nbd-server on a connection. */
  readonly serverConfig: string
}

/** A private folder under `parent`. @param space bytes that it wants. @throws Failure SPACE */
export async function makeFolder(parent: string, cleanup: Cleanup, space: number): Promise<string> {
  const { bavail, bsize } = await statfs(parent)
  if (bavail * bsize < space)
    throw new Failure(
      'SPACE',
      `${parent}: ${formatSize(bavail * bsize)} free, but the bench needs ${formatSize(space)}`,
      { remedy: 'name another folder: npm run bench -- --dir FOLDER' },
    )
  const folder = await mkdtemp(path.join(parent, 'nbd-clone-bench-'))
  cleanup.defer(() => rm(folder, { recursive: true, force: true }))
  return folder
}

/** Writes an image, which leaves it in the page cache. */
export async function makeImage(file: string, shape: Shape, signal: AbortSignal): Promise<void> {
  const piece = Buffer.alloc(4 * MIB)
  await using image = await open(file, 'wx')
  await image.truncate(shape.size)
  for (let start = 0; start < shape.size; start += shape.every)
    for (let at = start; at < start + shape.data; at += piece.length) {
      signal.throwIfAborted()
      await image.write(randomFillSync(piece), 0, piece.length, at)
    }
  await image.sync()
}

/** Reads a file once, so that its data is in the page cache. */
export async function warm(file: string, signal: AbortSignal): Promise<void> {
  await runGroup(['dd', `if=${file}`, 'of=/dev/null', 'bs=1M', 'status=none'], signal)
}

/**
 * Serves an image with the real nbd-server as the product runs it, one process per connection with the connection as
 * file descriptor 0; and with the tests' gate, which answers for the source at once.
 */
export async function serve(folder: string, image: string, cleanup: Cleanup): Promise<Served> {
  const name = path.basename(image)
  const socket = path.join(folder, `${name}.sock`)
  const config = path.join(folder, `${name}.conf`)
  const section = (export_: string): string[] => [
    `[${export_}]`,
    `exportname = ${image}`,
    'readonly = true',
    'virtstyle = none',
  ]
  const lines = [
    '[generic]',
    'port = 0',
    ...section('disk'),
    ...section(exportName('mydomain', 'vda', TOKEN)),
  ]
  await writeFile(config, lines.join('\n') + '\n')

  const servers = new Set<ChildProcess>()
  const listener = createServer({ pauseOnConnect: true }, connection => {
    const server = spawn('nbd-server', ['-d', '-C', config], {
      stdio: [connection, 'ignore', 'ignore'],
      env: childEnvironment(),
    })
    servers.add(server)
    server.once('exit', () => servers.delete(server)).once('error', () => servers.delete(server))
    connection.destroy()
  })
  const killServers = (): void => servers.forEach(server => server.kill('SIGKILL'))
  process.once('exit', killServers)
  cleanup.defer(() => {
    listener.close()
    killServers()
    process.off('exit', killServers)
  })
  await new Promise<void>(resolve => listener.listen(socket, resolve))

  // Only its gate: the bytes come from nbd-server.
  const source = await fakeSource({ vda: Buffer.alloc(0) })
  cleanup.defer(() => source[Symbol.asyncDispose]())
  source.killNbd()
  await rm(source.file('vda'))
  await symlink(image, source.file('vda'))
  // What the product's gate would say of a frozen base.
  const { handlers } = source
  const { hello } = handlers
  handlers.hello = async params => ({
    ...(await hello(params)),
    features: ['digests', 'allocation', 'changes'],
  })
  handlers.allocation = async () => {
    const { size } = await stat(image)
    const data = await readAllocation(image, size)
    return { size, extents: [...data.extents()].map(([at, length]) => [at, length]), next: null }
  }
  const standby = path.join(folder, `${name}.yaml`)
  const store = path.join(folder, `${name}.store`)
  const gateCommand = loadConfig(source.configFile).sources['alpha']?.gateCommand ?? []
  const configText =
    `store: ${store}\n` +
    `sources: { bench: { transport: unix, socket: ${socket}, gateCommand: ${JSON.stringify(gateCommand)} } }\n` +
    `domains: { mydomain: { source: bench } }\n`
  await writeFile(standby, configText)
  const uri = `nbd+unix:///disk?socket=${socket}`
  const ours = { config: standby, configText, store, handlers, gateCommand }
  return { image, uri, serverConfig: config, ...ours }
}
