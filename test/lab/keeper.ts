// What the keeper does to the lab, one thing at a time: build it, change it, tear it down.

import { Failure } from '../../shared/failures.ts'
import { inHost } from './enter.ts'
import { agentAnswers, makeGuest, startGuest } from './guest.ts'
import { isOn, makeFileSystem, powerCut, startServices, switchOn } from './host.ts'
import { introduceHosts } from './identity.ts'
import { leftovers, sweep } from './leftovers.ts'
import { HOSTS, type HostName } from './names.ts'
import { cutNetwork, healNetwork, layNetwork } from './network.ts'
import { installPrograms } from './programs.ts'
import type { KeeperOptions, LabStatus } from './protocol.ts'

export class Keeper {
  readonly #options: KeeperOptions
  readonly #say: (line: string) => void
  readonly #built: Promise<void>
  #state: LabStatus['state'] = 'building'
  #work: Promise<unknown> = Promise.resolve()
  #down: Promise<string[]> | undefined

  /** Begins to build. @param say is told what has been reached */
  constructor(options: KeeperOptions, say: (line: string) => void) {
    this.#options = options
    this.#say = say
    this.#built = this.#next(() => this.#build())
  }

  /** Resolves when the guest's agent answers; rejects when the lab could not be built. */
  get built(): Promise<void> {
    return this.#built
  }

  async #build(): Promise<void> {
    const installing = installPrograms()
    installing.catch(() => undefined)
    await layNetwork()
    const { store } = this.#options
    await Promise.all([makeFileSystem('source', 'ext4'), makeFileSystem('standby', store)])
    await Promise.all(HOSTS.map(switchOn))
    await introduceHosts()
    await Promise.all(HOSTS.map(startServices))
    this.#say('hosts source and standby are on')
    await makeGuest()
    // What was set up must survive a power cut that comes at once.
    await Promise.all(HOSTS.map(host => inHost(host, ['sync', '-f', '/var/lib'])))
    await startGuest()
    this.#say('the guest mydomain runs on the source')
    const warning = await installing
    if (warning !== undefined) this.#say(`warning: ${warning}`)
    if (!this.#down) this.#state = 'up'
  }

  /** One thing at a time: a boot must not meet a power cut of the same host. */
  #next<T>(step: () => Promise<T>): Promise<T> {
    const result = this.#work.then(step)
    this.#work = result.catch(() => undefined)
    return result
  }

  async #change(step: () => Promise<void>): Promise<void> {
    if (this.#state !== 'up') throw new Failure('UNSAFE', `the lab is ${this.#state}`)
    await this.#next(step)
  }

  powerCut(host: HostName): Promise<void> {
    return this.#change(() => powerCut(host))
  }

  /** @param guest whether to start the source's guest too, and wait for its agent */
  boot(host: HostName, guest: boolean): Promise<void> {
    return this.#change(async () => {
      if (isOn(host)) throw new Failure('UNSAFE', `host ${host} is on already`)
      await switchOn(host)
      await startServices(host)
      if (guest) await startGuest()
    })
  }

  cutNetwork(): Promise<void> {
    return this.#change(cutNetwork)
  }

  healNetwork(): Promise<void> {
    return this.#change(healNetwork)
  }

  async status(): Promise<LabStatus> {
    const { owner, store } = this.#options
    return {
      keeper: process.pid,
      ...(owner ? { owner: owner.pid } : {}),
      store,
      state: this.#state,
      hosts: { source: isOn('source'), standby: isOn('standby') },
      guest: isOn('source') && (await agentAnswers()),
    }
  }

  /** Tears everything down, once. @returns what is left nevertheless */
  down(): Promise<string[]> {
    this.#state = 'going down'
    this.#down ??= this.#tearDown()
    return this.#down
  }

  async #tearDown(): Promise<string[]> {
    // The first sweep makes whatever is under way fail; only the second is not disturbed by it.
    await sweep().catch(() => undefined)
    await this.#work
    await sweep()
    return leftovers()
  }
}
