// A lab with the product in it: serve running on the source, a standby configured, and the questions that tests ask again
// and again: is the source on its bases, what did serve do, what does the standby hold.

import { setTimeout as delay } from 'node:timers/promises'
import type { CommandResult, HostProcess } from './enter.ts'
import { startLab, type Lab } from './lab.ts'
import { waitFor } from './processes.ts'

export const IMAGES = '/var/lib/libvirt/images'
export const VDA = `${IMAGES}/mydomain-vda.raw`
export const VDB = `${IMAGES}/mydomain-vdb.qcow2`
export const CLONE = '/var/lib/nbd-clone/clones/mydomain'
export const NBD = 'nbd+unix:///mydomain/vda?socket=/run/nbd-clone/nbd.sock'

/** A script on the source that restarts its libvirtd. */
export const RESTART_LIBVIRT = '/var/lib/restart-libvirt'
const RESTART_SCRIPT = `#!/bin/sh
kill $(pidof libvirtd)
while pidof libvirtd >/dev/null; do sleep 0.1; done
exec libvirtd -d
`

/** source.yaml on the source. @param settings of mydomain, as in YAML's braces */
export function sourceConfig(settings = ''): string {
  return `
listen: { tcp: { host: 10.77.77.1, insecure: true } }
restartLibvirt: [sh, ${RESTART_LIBVIRT}]
domains: { mydomain: {${settings}} }
`
}
/** The standby's key for pulls; its other one is a person's. */
const PULL_KEY = '/etc/nbd-clone/id_ed25519'
/** In a source of standby.yaml: how it is logged in to. */
export const SSH = `ssh: { identity: ${PULL_KEY} }`
const STANDBY_CONFIG = `
sources: { alpha: { transport: ssh, host: source, ${SSH} } }
domains: { mydomain: { source: alpha, rpo: 4h } }
`

interface LogLine {
  readonly msg: string
  readonly [key: string]: unknown
}

/** serve as a child in the source, with what it logged. */
export class Serve {
  readonly process: HostProcess
  #log = ''

  constructor(process: HostProcess) {
    this.process = process
    process.stderr.on('data', (chunk: Buffer) => (this.#log += chunk.toString()))
  }

  /** What it logged so far; a line that is no JSON is a message. */
  log(): LogLine[] {
    return this.#log
      .split('\n')
      .filter(line => line !== '')
      .map(line => (line.startsWith('{') ? (JSON.parse(line) as LogLine) : { msg: line }))
  }

  count(message: string): number {
    return this.log().filter(line => line.msg === message).length
  }

  async stop(): Promise<CommandResult> {
    this.process.signal('SIGTERM')
    return this.process.result
  }
}

/** Starts serve and returns when it serves. @param path put in front of PATH */
export async function startServe(lab: Lab, path?: string): Promise<Serve> {
  const argv = ['clone-server', 'serve', '--json', '--log-level', 'debug']
  const serve = new Serve(
    lab.spawn(
      'source',
      path === undefined ? argv : ['sh', '-c', `PATH=${path}:$PATH exec ${argv.join(' ')}`],
    ),
  )
  await Promise.race([
    new Promise(resolve => serve.process.stdout.once('data', resolve)),
    serve.process.result.then(({ stderr }) => {
      throw new Error(`serve ended: ${stderr}`)
    }),
  ])
  return serve
}

/** A lab with both configurations written; serve is not started. */
export async function startWorld(
  config = sourceConfig(),
  standbyConfig = STANDBY_CONFIG,
): Promise<Lab> {
  const lab = await startLab()
  await lab.writeFile('source', '/etc/nbd-clone/source.yaml', config)
  await lab.writeFile('source', RESTART_LIBVIRT, RESTART_SCRIPT)
  await lab.writeFile('standby', '/etc/nbd-clone/standby.yaml', standbyConfig)
  await authorizeStandby(lab)
  return lab
}

/** As the README has it: a key on the standby that may do nothing on the source but pull. */
async function authorizeStandby(lab: Lab): Promise<void> {
  const comment = ['-C', 'standby']
  await lab.standby(['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', ...comment, '-f', PULL_KEY])
  const { stdout: key } = await lab.standby(['cat', `${PULL_KEY}.pub`])
  const rights = ['--client', 'standby', '--domains', 'all', '--install']
  await lab.source(['clone-server', 'authorize', key.trim(), ...rights])
}

/** What is wrong with the source: nothing, when live and inactive XML, QEMU and the images directory are as found. */
export async function sourceFaults(lab: Lab, domain = 'mydomain'): Promise<string[]> {
  const faults: string[] = []
  for (const flags of [[], ['--inactive']]) {
    const { stdout } = await lab.source(['virsh', '-q', 'domblklist', domain, ...flags])
    for (const [target, base] of [
      ['vda', VDA],
      ['vdb', VDB],
    ] as const)
      if (!new RegExp(`^ *${target} +${base}$`, 'm').test(stdout))
        faults.push(`${flags.join()} ${target} is not on its base:\n${stdout}`)
  }
  const nodes = await lab.source(
    ['virsh', 'qemu-monitor-command', domain, '{"execute":"query-named-block-nodes"}'],
    {
      reject: false,
    },
  )
  if (nodes.stdout.includes('.nbd-clone.')) faults.push('QEMU still has an overlay open')
  const files = (await lab.source(['ls', IMAGES])).stdout
    .split('\n')
    .filter(name => name.includes('.nbd-clone.'))
  faults.push(...files.map(name => `overlay left: ${name}`))
  return faults
}

/** Waits until the source is on its bases; fails with what is wrong after so many seconds. */
export async function untilOnBases(lab: Lab, seconds: number): Promise<void> {
  const end = Date.now() + seconds * 1000
  for (;;) {
    const faults = await sourceFaults(lab)
    if (faults.length === 0) return
    if (Date.now() > end)
      throw new Error(`source not on its bases after ${seconds} s: ${faults.join('; ')}`)
    await delay(200)
  }
}

/** The guest writes: its records grow. */
export async function guestWrites(lab: Lab): Promise<void> {
  const before = await lab.lastRecord('vdb')
  await waitFor(
    'the guest to go on writing',
    15,
    async () => (await lab.lastRecord('vdb')) > before,
  )
}

/** Steps of the domain's journal, in order. */
export async function journalSteps(lab: Lab): Promise<string[]> {
  const text = await lab.readFile('source', '/var/lib/nbd-clone/sessions/mydomain.journal')
  return text
    .split('\n')
    .filter(line => line !== '')
    .map(line => (JSON.parse(line) as { step: string }).step)
}

/** Puts a program named `name` first on PATH that runs `script` (sh; `"$real"` is the real one), then the real one. */
export async function wrapProgram(lab: Lab, name: string, script: string): Promise<string> {
  const directory = `/var/lib/wrapped-${name}`
  await lab.source(
    [
      'sh',
      '-c',
      `mkdir -p ${directory}; cat > ${directory}/${name}; chmod +x ${directory}/${name}`,
    ],
    {
      input: `#!/bin/sh\nreal=/usr/bin/${name}\n${script}\nexec "$real" "$@"\n`,
    },
  )
  return directory
}

/** `clone ARGS --json` on the standby, with what it printed. */
export async function clone(
  lab: Lab,
  ...args: string[]
): Promise<CommandResult & { json: unknown }> {
  const result = await lab.standby(['clone', ...args, '--json'], {
    reject: false,
    timeout: 240_000,
  })
  let json: unknown
  try {
    json = JSON.parse(result.stdout)
  } catch {
    json = undefined
  }
  return { ...result, json }
}
