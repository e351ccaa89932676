// virtnbdbackup's row. It backs up libvirt domains with qcow2 disks, so it runs on the lab's source host, on a running
// domain whose disk has the same content as the image; its result is a stream file of its own format.

import { rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { Cleanup } from '../../shared/cleanup.ts'
import { toFailure } from '../../shared/failures.ts'
import { enterArgv } from '../lab/enter.ts'
import { startLab } from '../lab/lab.ts'
import { DOMAIN as GUEST } from '../lab/names.ts'
import { measure, runGroup } from './measure.ts'
import type { Row } from './rows.ts'
import { warm } from './world.ts'

export const NAME = 'virtnbdbackup'
const DOMAIN = 'bench'
const IMAGES = '/var/lib/libvirt/images'
const DISK = `${IMAGES}/bench.qcow2`

const xml = `<domain type='qemu'>
  <name>${DOMAIN}</name>
  <memory unit='MiB'>64</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type><boot dev='hd'/></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='${DISK}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
  </devices>
  <seclabel type='none'/>
</domain>
`

/** Makes the lab and the domain, kept until `cleanup`. @returns the row, or in words why there is none */
export async function virtnbdbackupRow(
  folder: string,
  image: string,
  cleanup: Cleanup,
  signal: AbortSignal,
): Promise<Row | string> {
  await using own = new Cleanup()
  try {
    const lab = await startLab()
    const forget = own.defer(() => lab[Symbol.asyncDispose]())
    // The lab's guest writes all the time, in software emulation: it would slow every row.
    await lab.source(['virsh', 'destroy', GUEST])
    const disk = await lab.path('source', DISK)
    await runGroup(['qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', image, disk], signal)
    await warm(disk, signal)
    const definition = path.join(folder, 'bench.xml')
    await writeFile(definition, xml)
    await lab.source(['virsh', 'create', definition])
    // No bootable disk: the firmware says so and stands still, so nothing but the backup is measured.
    await lab.source(['virsh', 'suspend', DOMAIN])
    forget()
    cleanup.defer(() => lab[Symbol.asyncDispose]())
  } catch (error) {
    signal.throwIfAborted()
    // The lab's own failure comes with its hint and code on further lines.
    const [why = ''] = toFailure(error).message.split('\n')
    return why.replace('no lab: lab:', 'no lab:')
  }

  const output = path.join(folder, 'virtnbdbackup')
  const argv = [
    ...['virtnbdbackup', '--domain', DOMAIN, '--level', 'copy'],
    ...['--output', output, '--scratchdir', IMAGES],
  ]
  return {
    name: NAME,
    title: 'virtnbdbackup -l copy (qcow2 of the same content, straight from QEMU)',
    command: `virtnbdbackup -d ${DOMAIN} -l copy -o "$2"`,
    copy: undefined,
    run: signal => measure(argv, folder, signal, inSource),
    clear: () => rm(output, { recursive: true, force: true }),
  }
}

function inSource(argv: string[]): string[] {
  const [file, args] = enterArgv('source', argv)
  return [file, ...args]
}
