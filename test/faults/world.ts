// The lab in which faults happen: serve with a virsh that can be held, clients that can be killed, a guest with a second
// monitor. A fault strikes at one moment, from which the seconds count.

import { setTimeout as delay } from 'node:timers/promises'
import { BRAKE_SOCKET, startBrake } from '../lab/brake.ts'
import type { CommandResult, HostProcess } from '../lab/enter.ts'
import { agentAnswers } from '../lab/guest.ts'
import type { HostName } from '../lab/names.ts'
import type { Lab } from '../lab/lab.ts'
import { waitFor } from '../lab/processes.ts'
import { NBD, SSH, startServe, startWorld, VDA, VDB, type Serve } from '../lab/world.ts'
import { mark, NOTHING, type Synced } from './guest-data.ts'
import { hold, installWrapper, letGo, type Hold } from './holds.ts'
import { Monitor, withSecondMonitor } from './monitor.ts'
import { killOnSource, type Victim } from './processes.ts'

export const JOURNAL = '/var/lib/nbd-clone/sessions/mydomain.journal'
/** The domain's definition as it was found, for an admin who defines it anew. */
export const DEFINITION = '/root/mydomain.xml'
const BRAKED = '/etc/nbd-clone/braked.yaml'
const BRAKED_CONFIG = `
sources: { alpha: { transport: unix, socket: ${BRAKE_SOCKET}, gate: ssh, host: source, ${SSH} } }
domains: { mydomain: { source: alpha, rpo: 4h, keep: { last: 2 }, stall: 15s } }
`
/** As long as systemd waits before it starts a service that failed. */
const RESTART_MS = 500
const BOOT_SECONDS = 90

export interface Puller {
  /** Program and verb, for the table. */
  readonly what: string
  readonly process: HostProcess
  readonly result: Promise<CommandResult>
  isOver(): boolean
  /** Lets a copy that stands in the middle go on. */
  release(): void
}

export class World implements AsyncDisposable {
  readonly lab: Lab
  readonly #path: string
  #serve: Serve | undefined
  #struckAt: number | undefined
  #synced: Synced = NOTHING
  #open: AsyncDisposable[] = []
  /** Where each disk must be afterwards; a row that takes a disk away says so. */
  bases: Readonly<Record<string, string>> = BASES
  /** Images that an admin has put on top, with the base below each. */
  stacked: Readonly<Record<string, string>> = {}

  private constructor(lab: Lab, path: string) {
    this.lab = lab
    this.#path = path
  }

  static async start(sourceConfig?: string): Promise<World> {
    const lab = await startWorld(sourceConfig)
    try {
      await lab.writeFile('standby', BRAKED, BRAKED_CONFIG)
      const world = new World(lab, await installWrapper(lab))
      const xml = (await lab.source(['virsh', 'dumpxml', 'mydomain', '--inactive'])).stdout
      await lab.source(['virsh', '-q', 'destroy', 'mydomain'])
      await lab.writeFile('source', DEFINITION, withSecondMonitor(xml))
      await lab.source(['virsh', '-q', 'define', DEFINITION])
      await world.startGuest()
      await waitFor('the first records', 30, async () => (await lab.lastRecord('vdb')) > 0)
      await world.startServe()
      return world
    } catch (error) {
      await lab[Symbol.asyncDispose]()
      throw error
    }
  }

  get serve(): Serve {
    if (!this.#serve) throw new Error('serve does not run')
    return this.#serve
  }

  /** Performance clock at the fault; undefined before it. */
  get struckAt(): number | undefined {
    return this.#struckAt
  }

  get synced(): Synced {
    return this.#synced
  }

  /** Forgets the last cell. */
  async newCell(): Promise<void> {
    this.#struckAt = undefined
    this.bases = BASES
    this.stacked = {}
    await this.note()
  }

  /** Has the guest say what it has synced: nothing of that may be missing afterwards. */
  async note(): Promise<void> {
    this.#synced = await mark(this.lab, this.#synced)
  }

  /** The fault happens now; of several the last one counts. */
  strike(): void {
    this.#struckAt = performance.now()
  }

  hold(when: 'before' | 'after', call: string): Promise<Hold> {
    return hold(this.lab, when, call)
  }

  /** Stops serve and starts it with another configuration. */
  async configure(config: string): Promise<void> {
    await this.serve.stop()
    await this.lab.writeFile('source', '/etc/nbd-clone/source.yaml', config)
    await this.startServe()
  }

  async startServe(): Promise<void> {
    this.#serve = await startServe(this.lab, this.#path)
  }

  /** Starts serve again after its end, as systemd would. */
  async restartServe(): Promise<void> {
    await this.serve.process.result
    await delay(RESTART_MS)
    await this.startServe()
  }

  /** Starts the guest that is off, and waits for its agent. */
  async startGuest(): Promise<void> {
    await this.lab.source(['virsh', '-q', 'start', 'mydomain'])
    await this.untilAgent()
  }

  /** Returns when libvirt says so of the domain. */
  async untilState(state: string, seconds = 60): Promise<void> {
    await waitFor(`the domain to be ${state}`, seconds, async () => {
      const { stdout } = await this.lab.source(['virsh', 'domstate', 'mydomain'], { reject: false })
      return stdout.trim() === state
    })
  }

  async untilAgent(): Promise<void> {
    await waitFor('the guest agent', BOOT_SECONDS, agentAnswers)
  }

  /** A pull in the background. */
  pull(): Puller {
    return this.client('standby', ['clone', 'pull', 'mydomain'])
  }

  /** A pull that stands in the middle of its copy. */
  async heldPull(): Promise<Puller> {
    const brake = await startBrake(this.lab)
    this.#open.push(brake)
    const argv = ['clone', 'pull', 'mydomain', '--full', '--config', BRAKED]
    const process = this.lab.spawn('standby', argv)
    const early = process.result.then(({ stderr }) => {
      throw new Error(`the pull ended before it was held: ${stderr}`)
    })
    early.catch(() => undefined)
    await Promise.race([brake.held, early])
    return this.#puller(argv, process, () => brake.release())
  }

  /** A stock client on the source that reads a disk from its begin to its end. */
  stockClient(): Puller {
    return this.client('source', ['nbdcopy', '--connections=1', NBD, 'null:'])
  }

  /** Any command, in the background. */
  client(host: HostName, argv: readonly string[]): Puller {
    return this.#puller(argv, this.lab.spawn(host, argv))
  }

  #puller(argv: readonly string[], process: HostProcess, release = (): void => undefined): Puller {
    this.#open.push(process)
    let over = false
    void process.result.then(() => (over = true))
    const words = argv.slice(0, argv[0] === 'nbdcopy' ? 1 : 2)
    return { what: words.join(' '), process, result: process.result, isOver: () => over, release }
  }

  /** SIGKILL. @throws when there is nobody to kill: such a cell would prove nothing */
  async kill(victim: Victim, puller?: Puller): Promise<void> {
    this.strike()
    if (victim === 'client') {
      if (!puller) throw new Error('no client to kill')
      puller.process.signal('SIGKILL')
      return
    }
    if ((await killOnSource(this.lab, victim)) === 0) throw new Error(`no ${victim} to kill`)
  }

  /** libvirtd again after its end, as systemd would. */
  async startLibvirtd(): Promise<void> {
    await this.lab.source(['sh', '-c', 'rm -f /run/libvirtd.pid; exec libvirtd -d'])
  }

  monitor(): Promise<Monitor> {
    return Monitor.open(this.lab)
  }

  /** Words of the last line of the journal; undefined when there is none. */
  async lastStep(): Promise<string | undefined> {
    const { stdout } = await this.lab.source(['tail', '-n', '1', JOURNAL], { reject: false })
    return /^\{"step":"([^"]+)"/.exec(stdout)?.[1]
  }

  async untilStep(step: string, seconds = 60): Promise<void> {
    await waitFor(
      `the journal to say ${step}`,
      seconds,
      async () => (await this.lastStep()) === step,
    )
  }

  /** Ends what a cell has left running. */
  async tidy(): Promise<void> {
    const open = this.#open
    this.#open = []
    for (const one of open.reverse()) await one[Symbol.asyncDispose]()
    await letGo(this.lab)
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.lab[Symbol.asyncDispose]()
  }
}

/** Where the disks are when no session is on. */
export const BASES: Readonly<Record<string, string>> = { vda: VDA, vdb: VDB }
