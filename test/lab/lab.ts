// The lab for tests: `await using lab = await startLab()`. It goes with the test's process, however that ends.

import { join } from 'node:path'
import { execa } from 'execa'
import { Failure } from '../../shared/failures.ts'
import { ask, readStatus, takeDown } from './control.ts'
import { HostProcess, inHost, type CommandOptions, type CommandResult } from './enter.ts'
import { childEnvironment } from './environment.ts'
import { guestExec } from './guest.ts'
import { pathInHost } from './host.ts'
import { writeInHost } from './identity.ts'
import { ROOT, type HostName, type Store } from './names.ts'
import type { LabStatus } from './protocol.ts'

export interface LabOptions {
  /** File system of the standby's store. */
  readonly store?: Store
}

/** Makes the lab for this process. Needs what `npm run build` makes. */
export async function startLab({ store = 'xfs' }: LabOptions = {}): Promise<Lab> {
  const cli = join(ROOT, 'dist', 'test', 'lab', 'cli.js')
  const args = [cli, 'up', '--store', store, '--owner', String(process.pid)]
  const { exitCode, stderr } = await execa(process.execPath, args, {
    reject: false,
    stdin: 'ignore',
    env: childEnvironment(),
    extendEnv: false,
  })
  if (exitCode !== 0) throw new Failure('INTERNAL', `no lab: ${stderr}`)
  const status = await readStatus()
  if (status?.owner !== process.pid)
    throw new Failure('INTERNAL', 'the lab went as soon as it was up')
  return new Lab(status.keeper)
}

/** The lab that is up. */
export class Lab implements AsyncDisposable {
  readonly #children = new Set<HostProcess>()
  readonly #keeper: number

  /** @param keeper process id of its keeper: only the lab of that one is ever removed */
  constructor(keeper: number) {
    this.#keeper = keeper
  }

  source(argv: readonly string[], options?: CommandOptions): Promise<CommandResult> {
    return this.run('source', argv, options)
  }

  standby(argv: readonly string[], options?: CommandOptions): Promise<CommandResult> {
    return this.run('standby', argv, options)
  }

  /** Runs argv on a host to its end. */
  run(host: HostName, argv: readonly string[], options?: CommandOptions): Promise<CommandResult> {
    return inHost(host, argv, options)
  }

  /** Runs argv in the guest; a failed command is a result like any other. */
  guest(argv: readonly string[]): Promise<CommandResult> {
    return guestExec(argv)
  }

  /** Starts a long-running command on a host. It is killed with the lab, or by its own `await using`. */
  spawn(host: HostName, argv: readonly string[]): HostProcess {
    const child = new HostProcess(host, argv)
    this.#children.add(child)
    return child
  }

  /** Writes a file on a host, durably, with its directories. */
  writeFile(host: HostName, path: string, text: string): Promise<void> {
    return writeInHost(host, path, text)
  }

  async readFile(host: HostName, path: string): Promise<string> {
    return (await inHost(host, ['cat', path])).stdout
  }

  /** A path on a host as this process sees it. Absolute symlinks do not work there. */
  path(host: HostName, path: string): Promise<string> {
    return pathInHost(host, path)
  }

  async powerCut(host: HostName): Promise<void> {
    await ask('power-cut', { host })
  }

  /** @param guest start the source's guest too, and wait for its agent */
  async boot(host: HostName, { guest = false } = {}): Promise<void> {
    await ask('boot', { host, guest })
  }

  async netCut(): Promise<void> {
    await ask('net-cut')
  }

  async netHeal(): Promise<void> {
    await ask('net-heal')
  }

  /** @returns undefined when the lab is gone */
  status(): Promise<LabStatus | undefined> {
    return readStatus()
  }

  /** The number of the last record that the guest wrote to a disk. */
  async lastRecord(target: 'vda' | 'vdb'): Promise<number> {
    const file = `/data/${target === 'vda' ? 'a' : 'b'}/records`
    return Number((await guestExec(['tail', '-n', '1', file])).stdout)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const child of this.#children) await child[Symbol.asyncDispose]()
    const left = await takeDown(this.#keeper)
    if (left.length > 0) throw new Failure('INTERNAL', `the lab left behind: ${left.join(', ')}`)
  }
}
