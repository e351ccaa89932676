// What the rows on real domains work on: the lab with the product in it, and domains whose disks the bench makes. They stand
// still, so that nothing but the copy is measured; who writes to them is the bench, through QEMU, which records it.

import { writeFile } from 'node:fs/promises'
import path from 'node:path'
import type { Cleanup } from '../../shared/cleanup.ts'
import { Failure } from '../../shared/failures.ts'
import { GRAIN } from '../../shared/grain-set.ts'
import { enterArgv, inHost } from '../lab/enter.ts'
import type { Lab } from '../lab/lab.ts'
import { DOMAIN as GUEST, type HostName } from '../lab/names.ts'
import { IMAGES, SSH, startServe, startWorld, type Serve } from '../lab/world.ts'
import { measure, runGroup } from './measure.ts'
import type { Row, Run } from './rows.ts'

export interface LabWorld {
  readonly lab: Lab
  readonly serve: Serve
  /** Of the bench, on this machine. */
  readonly folder: string
}

/** A disk of a domain, with the content of a file of the bench. */
export interface BenchDisk {
  readonly target: string
  readonly format: 'raw' | 'qcow2'
  readonly content: string
}

/** The domains that the standby may pull, beside the lab's own guest. */
export const PULLED = ['tracked', 'mixed', ...Array.from({ length: 8 }, (_, at) => `many${at + 1}`)]

/** The lab, until `cleanup`; its own guest, which writes all the time, is off. */
export async function labWorld(folder: string, cleanup: Cleanup): Promise<LabWorld> {
  const names = [GUEST, ...PULLED]
  const lab = await startWorld(
    `listen: { tcp: { host: 10.77.77.1, insecure: true } }\ndomains: { ${names.map(name => `${name}: {}`).join(', ')} }\n`,
    `sources: { alpha: { transport: tcp, insecure: true, host: source, ${SSH} } }\n` +
      `domains: { ${names.map(name => `${name}: { source: alpha }`).join(', ')} }\n`,
  )
  cleanup.defer(() => lab[Symbol.asyncDispose]())
  await lab.source(['virsh', 'destroy', GUEST])
  return { lab, serve: await startServe(lab), folder }
}

/** Makes a domain on the source that stands still from its start. */
export async function makeDomain(
  { lab, folder }: LabWorld,
  name: string,
  disks: readonly BenchDisk[],
  signal: AbortSignal,
): Promise<void> {
  for (const { target, format, content } of disks) {
    const image = await lab.path('source', diskFile(name, target, format))
    await runGroup(['qemu-img', 'convert', '-f', 'raw', '-O', format, content, image], signal)
  }
  const xml = disks.map(
    ({ target, format }) => `<disk type='file' device='disk'>
      <driver name='qemu' type='${format}'/><source file='${diskFile(name, target, format)}'/><target dev='${target}' bus='virtio'/>
    </disk>`,
  )
  const definition = path.join(folder, `${name}.xml`)
  await writeFile(
    definition,
    `<domain type='qemu'><name>${name}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
    <os><type arch='x86_64' machine='q35'>hvm</type></os><devices>${xml.join('')}</devices><seclabel type='none'/></domain>`,
  )
  await lab.source(['virsh', '-q', 'define', definition])
  await lab.source(['virsh', '-q', 'start', '--paused', name])
}

export const diskFile = (domain: string, target: string, format: string): string =>
  `${IMAGES}/${domain}-${target}.${format}`

/** Writes grains of a disk of a running domain as its guest would. @throws Failure INTERNAL */
export async function writeGrains(
  { lab }: LabWorld,
  domain: string,
  disk: number,
  grains: readonly number[],
  pattern: number,
): Promise<void> {
  const writes = runsOf(grains).map(
    ([first, count]) =>
      `qemu-monitor-command ${domain} --hmp 'qemu-io -d /machine/peripheral/virtio-disk${disk}/virtio-backend "write -P ${pattern} ${first * GRAIN} ${count * GRAIN}"'`,
  )
  const flush = `qemu-monitor-command ${domain} --hmp 'qemu-io -d /machine/peripheral/virtio-disk${disk}/virtio-backend flush'`
  const { stdout, stderr } = await lab.source(['virsh'], {
    input: `${[...writes, flush].join('\n')}\n`,
  })
  // What qemu-io itself says goes to QEMU's log; that the bytes were written is told by the pull, which reads them.
  const [wrong] = /^(error|Error).*/m.exec(`${stdout}\n${stderr}`) ?? []
  if (wrong !== undefined)
    throw new Failure('INTERNAL', `QEMU did not write to ${domain}: ${wrong}`)
}

/** Consecutive numbers as [first, how many], no more than 16 MiB of grains each. */
function runsOf(grains: readonly number[]): [number, number][] {
  const runs: [number, number][] = []
  for (const grain of grains) {
    const last = runs.at(-1)
    if (last && last[0] + last[1] === grain && last[1] < 256) last[1]++
    else runs.push([grain, 1])
  }
  return runs
}

/** `clone pull` of domains on the standby, as processes side by side. */
export function pullInLab(
  name: string,
  title: string,
  { lab, folder }: LabWorld,
  domains: readonly string[],
): Row {
  const [only] = domains
  const command = domains.map(domain => `clone pull ${domain}`).join(' & ')
  const script = `${domains.map(domain => `clone pull ${domain} --json & p="$p $!"`).join('; ')}; for one in $p; do wait $one; done`
  return {
    name,
    title,
    command: domains.length === 1 ? command : `${command}; wait`,
    copy: undefined,
    async run(signal): Promise<Run> {
      const argv =
        domains.length === 1 && only !== undefined
          ? ['clone', 'pull', only, '--json']
          : ['sh', '-ec', script]
      const measured = await measure(argv, folder, signal, inLab('standby'))
      if (domains.length > 1) return measured
      const { results } = JSON.parse(measured.stdout) as {
        results: { seconds: Record<string, number>; bytes: { read: number } }[]
      }
      return {
        ...measured,
        phases: results[0]?.seconds ?? {},
        bytesRead: results[0]?.bytes.read ?? 0,
      }
    },
    async clear() {
      for (const domain of domains)
        await lab.standby(['rm', '-rf', `/var/lib/nbd-clone/clones/${domain}`])
    },
  }
}

/** For `measure`: runs what it times on a host of the lab. */
export function inLab(host: HostName): (argv: string[]) => string[] {
  return argv => {
    const [file, args] = enterArgv(host, argv)
    return [file, ...args]
  }
}

/** What the standby holds of a domain is what its disks are, which stand still. @throws Failure INTERNAL */
export async function comparePulled(domain: string, disks: readonly BenchDisk[]): Promise<void> {
  for (const { target, format } of disks) {
    const there = diskFile(domain, target, format)
    const here = `/var/lib/nbd-clone/clones/${domain}/current/${target}.${format}`
    const [source, standby] = await Promise.all([
      inHost('source', ['sha256sum', there]),
      inHost('standby', ['sha256sum', here]),
    ])
    if (source.stdout.slice(0, 64) !== standby.stdout.slice(0, 64))
      throw new Failure('INTERNAL', `${here} is not what ${there} is on the source`)
  }
}
