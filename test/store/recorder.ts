// A file system on a disk whose every write is kept in order, so that the disk can be had as a power cut at any moment would
// have left it. Worker thread (NBD) <- nbdfuse (a file) <- loop device <- file system.

import { execa } from 'execa'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, open, rm, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import type { FileSystem } from '../client/medium.ts'
import { FAILING, type Failing } from './failing.ts'
import type { Event, Order, RecordedDisk } from './recorder-worker.ts'

export interface Recorder extends AsyncDisposable {
  /** Where the file system is mounted. */
  readonly mounted: string
  readonly type: FileSystem
  /** Bytes of the disk. */
  readonly size: number
  /** Notes in the log that something is over, after everything written before it. */
  mark(what: string): Promise<void>
  /** Has reads or writes of the disk end in EIO from this moment on, or lets them work again. */
  fail(what: Failing): void
  /** Unmounts and mounts again, as after a reboot. */
  remount(): Promise<void>
  /** A file: the disk as mkfs left it. */
  readonly made: string
  /** All that was written since then, with the marks. */
  events(): Promise<readonly Event[]>
}

/** Sizes in MiB that mkfs takes; XFS takes no less. */
const SIZE: Readonly<Record<FileSystem, number>> = { xfs: 300, ext4: 256 }
const MIB = 1024 * 1024

const run = (program: string, ...args: string[]) => execa(program, args, { stdin: 'ignore' })

/** Makes and mounts a file system that is recorded; seen in this mount namespace only. @param kept whether its writes are kept */
export async function record(type: FileSystem, kept = true): Promise<Recorder> {
  const dir = await mkdtemp(path.join(tmpdir(), 'nbd-clone-recorded-'))
  const disk: RecordedDisk = {
    file: path.join(dir, 'disk'),
    socket: path.join(dir, 'nbd.sock'),
    size: SIZE[type] * MIB,
    kept,
    failing: new Int32Array(new SharedArrayBuffer(4)),
  }
  await writeFile(disk.file, '')
  await truncate(disk.file, disk.size)
  await run(`mkfs.${type}`, '-q', disk.file)
  const made = path.join(dir, 'made')
  await run('cp', '--sparse=always', disk.file, made)

  const program = import.meta.url.endsWith('.ts') ? './recorder-worker.ts' : './recorder-worker.js'
  const worker = new Worker(new URL(program, import.meta.url), { workerData: disk })
  await once(worker, 'message')
  const fail = (what: Failing): void => {
    Atomics.store(disk.failing, 0, FAILING.indexOf(what))
  }
  const ask = async (order: Order): Promise<unknown> => {
    const answered = once(worker, 'message')
    worker.postMessage(order)
    return ((await answered) as unknown[])[0]
  }

  const fuse = path.join(dir, 'fuse')
  const mounted = path.join(dir, 'mounted')
  await mkdir(fuse)
  await mkdir(mounted)
  // It must not outlive this process: it would keep the mount namespace, and so the mounts.
  const nbdfuse = execa(
    'setpriv',
    ['--pdeathsig', 'KILL', 'nbdfuse', path.join(fuse, 'disk'), '--unix', disk.socket],
    { stdin: 'ignore', reject: false },
  )
  const file = path.join(fuse, 'disk')
  await untilThere(file)
  // Past the page cache of `file`, which would give what the disk does not give any more.
  const { stdout: loop } = await run('losetup', '--find', '--show', '--direct-io=on', file)
  // Detached already, it goes when nobody has it open any more, also when this process is killed.
  const held = await open(loop, 'r')
  await run('losetup', '--detach', loop)
  const mount = () => run('mount', loop, mounted)
  await mount()

  return {
    mounted,
    type,
    size: disk.size,
    made,
    async remount() {
      await run('umount', mounted)
      await mount()
    },
    mark: async what => {
      await ask({ kind: 'mark', what })
    },
    fail,
    events: async () => (await ask({ kind: 'events' })) as Event[],
    async [Symbol.asyncDispose]() {
      fail('nothing')
      await run('umount', '--lazy', mounted)
      await held.close()
      await run('umount', '--lazy', fuse)
      await nbdfuse
      await worker.terminate()
      await rm(dir, { recursive: true, force: true })
    },
  }
}

async function untilThere(file: string): Promise<void> {
  for (let tries = 0; !existsSync(file); tries++) {
    if (tries > 500) throw new Error(`nbdfuse made no ${file}`)
    await delay(10)
  }
}
