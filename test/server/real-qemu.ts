// A QEMU without a guest, with one disk: what a guest would do to it is done through its monitor.

import { execa } from 'execa'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { z } from 'zod'
import { openMonitorSocket, type Monitor } from '../../server/libvirt/monitor.ts'
import { socketBeside } from '../../server/tracking/export.ts'
import { isListening } from '../nbd/listening.ts'

export interface RealQemu extends AsyncDisposable {
  readonly monitor: Monitor
  /** Where it may listen for readers of bitmaps. */
  readonly socket: string
  /** As the guest would. @param command of qemu-io, e.g. `write 0 64k` */
  io(command: string): Promise<void>
  /** @param size bytes that the guest sees */
  resize(size: number): Promise<void>
  /** Read-only, as a base under an overlay, or not. */
  setFrozen(isFrozen: boolean): Promise<void>
}

/** Starts it; disposing kills it. The image's file is the node `storage`. */
export async function realQemu(image: string, format: 'raw' | 'qcow2'): Promise<RealQemu> {
  const dir = await mkdtemp(path.join(tmpdir(), 'nbd-clone-test-'))
  const qmp = path.join(dir, 'monitor.sock')
  const file = { driver: 'file', 'node-name': 'storage', filename: image, discard: 'unmap' }
  const top = { driver: format, 'node-name': 'format', file: 'storage', discard: 'unmap' }
  const child = execa(
    'qemu-system-x86_64',
    [
      ...['-nodefaults', '-display', 'none', '-S', '-machine', 'none', '-accel', 'tcg'],
      ...['-qmp', `unix:${qmp},server=on,wait=off`],
      ...['-blockdev', JSON.stringify(file), '-blockdev', JSON.stringify(top)],
    ],
    { reject: false },
  )
  while (!isListening(qmp)) {
    if (child.exitCode !== null) throw new Error(`QEMU did not start: ${(await child).stderr}`)
    await sleep(20)
  }
  const monitor = await openMonitorSocket(qmp)
  const run = (execute: string, argument: Record<string, unknown>) =>
    monitor.execute({ execute, arguments: argument }, z.unknown())
  return {
    monitor,
    socket: socketBeside(qmp),
    async io(command) {
      await run('human-monitor-command', { 'command-line': `qemu-io format "${command}"` })
    },
    async resize(size) {
      await run('block_resize', { 'node-name': 'format', size })
    },
    async setFrozen(isFrozen) {
      await run('blockdev-reopen', { options: [{ ...top, 'read-only': isFrozen }] })
    },
    async [Symbol.asyncDispose]() {
      await monitor[Symbol.asyncDispose]()
      child.kill('SIGKILL')
      await child
      await rm(dir, { recursive: true, force: true })
    },
  }
}
