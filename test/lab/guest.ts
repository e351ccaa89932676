// The guest on the source: domain `mydomain` with a raw disk vda and a qcow2 disk vdb, writing numbered records.

import { join } from 'node:path'
import { Failure } from '../../shared/failures.ts'
import { inHost, type CommandResult } from './enter.ts'
import { isOn } from './host.ts'
import { writeInHost } from './identity.ts'
import { buildInitramfs, kernelVersion } from './image/initramfs.ts'
import { BIG, DOMAIN, HOSTS } from './names.ts'
import { waitFor } from './processes.ts'

const IMAGES = '/var/lib/libvirt/images'
const BOOT = '/var/lib/libvirt/boot'
const DISK_SIZE = '512M'
/** No freeze lasts longer, whatever dies. */
const FROZEN_MS = 20_000

function definition(): string {
  const disk = (target: string, format: string): string => `
    <disk type='file' device='disk'>
      <driver name='qemu' type='${format}' cache='none'/>
      <source file='${IMAGES}/${DOMAIN}-${target}.${format}'/>
      <target dev='${target}' bus='virtio'/>
    </disk>`
  return `<domain type='qemu'>
  <name>${DOMAIN}</name>
  <memory unit='MiB'>192</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>${BOOT}/guest-vmlinuz</kernel>
    <initrd>${BOOT}/guest-initrd</initrd>
    <cmdline>console=ttyS0 quiet panic=-1</cmdline>
  </os>
  <features><acpi/></features>
  <on_reboot>restart</on_reboot>
  <devices>${disk('vda', 'raw')}${disk('vdb', 'qcow2')}
    <serial type='file'><source path='/var/log/libvirt/qemu/${DOMAIN}-serial.log'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <memballoon model='none'/>
  </devices>
</domain>
`
}

/** Makes the disks on the source, the boot files on both hosts (a failed-over clone needs them), and the domain. */
export async function makeGuest(): Promise<void> {
  const version = await kernelVersion()
  const initramfs = join(BIG, 'guest-initrd')
  await buildInitramfs(version, initramfs)
  for (const host of HOSTS) {
    await inHost(host, ['mkdir', '-p', BOOT])
    await inHost(host, ['cp', `/boot/vmlinuz-${version}`, `${BOOT}/guest-vmlinuz`])
    await inHost(host, ['cp', initramfs, `${BOOT}/guest-initrd`])
  }
  await makeDisks()
  await writeInHost('source', '/root/mydomain.xml', definition())
  await inHost('source', ['virsh', '-q', 'define', '/root/mydomain.xml'])
  await inHost('source', ['rm', '/root/mydomain.xml'])
}

async function makeDisks(): Promise<void> {
  // Nothing lazy: the guest's kernel would write to the disks by itself for minutes.
  const lazy = 'lazy_itable_init=0,lazy_journal_init=0'
  for (const target of ['vda', 'vdb']) {
    const raw = `${IMAGES}/${DOMAIN}-${target}.raw`
    await inHost('source', ['truncate', '-s', DISK_SIZE, raw])
    await inHost('source', ['mkfs.ext4', '-q', '-F', '-N', '1024', '-J', 'size=8', '-E', lazy, raw])
  }
  const vdb = `${IMAGES}/${DOMAIN}-vdb`
  const convert = ['qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', `${vdb}.raw`, `${vdb}.qcow2`]
  await inHost('source', convert)
  await inHost('source', ['rm', `${vdb}.raw`])
}

/** Starts the domain and returns when its agent answers. */
export async function startGuest(): Promise<void> {
  await inHost('source', ['virsh', '-q', 'start', DOMAIN])
  await waitFor('the guest agent', 90, async () => {
    if (!isOn('source'))
      throw new Failure('INTERNAL', 'the source went off while its guest started')
    return agentAnswers()
  })
}

export async function agentAnswers(): Promise<boolean> {
  const ping = ['virsh', '-q', 'qemu-agent-command', DOMAIN, '--timeout', '2']
  const { exitCode } = await inHost('source', [...ping, '{"execute":"guest-ping"}'], {
    reject: false,
  })
  return exitCode === 0
}

/** Runs argv in the guest through its agent. */
export async function guestExec(argv: readonly string[]): Promise<CommandResult> {
  const [path, ...arg] = argv
  if (path === undefined) throw new Failure('USAGE', 'usage: guest CMD...')
  const { pid } = await agent<{ pid: number }>('guest-exec', {
    path,
    arg,
    'capture-output': true,
  })
  for (;;) {
    const status = await agent<ExecStatus>('guest-exec-status', { pid })
    if (!status.exited) continue
    return {
      stdout: decode(status['out-data']),
      stderr: decode(status['err-data']),
      exitCode: status.exitcode ?? 128 + (status.signal ?? 0),
    }
  }
}

interface ExecStatus {
  readonly exited: boolean
  readonly exitcode?: number
  readonly signal?: number
  readonly 'out-data'?: string
  readonly 'err-data'?: string
}

async function agent<T>(execute: string, args: object): Promise<T> {
  const message = JSON.stringify({ execute, arguments: args })
  const command = ['virsh', '-q', 'qemu-agent-command', DOMAIN, message]
  const end = Date.now() + FROZEN_MS
  let result = await inHost('source', command, { reject: false })
  // A session may just be freezing it, or libvirt just looking at its channel again; a guest that stays so is a failure.
  while (/in frozen state|agent is not connected/.test(result.stderr) && Date.now() < end)
    result = await inHost('source', command, { reject: false })
  if (result.exitCode !== 0)
    throw new Failure('INTERNAL', `the guest agent did not run ${execute}: ${result.stderr.trim()}`)
  return (JSON.parse(result.stdout) as { return: T }).return
}

function decode(base64 = ''): string {
  return Buffer.from(base64, 'base64').toString('utf8')
}
