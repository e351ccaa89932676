// Stops a copy in the middle for certain, not by luck: NBD goes through a relay on the standby that holds what the source
// sends once so much has passed, until it is let go.

import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { HostProcess } from './enter.ts'
import type { Lab } from './lab.ts'
import { ADDRESS, ROOT } from './names.ts'

const MIB = 1024 * 1024

/** Where a standby connects whose pull is to be held: a source of `transport: unix` with this socket. */
export const BRAKE_SOCKET = '/run/brake.sock'

export class Brake implements AsyncDisposable {
  /** Resolves when so many bytes have passed and everything stands. */
  readonly held: Promise<void>
  readonly #process: HostProcess

  constructor(process: HostProcess, held: Promise<void>) {
    this.#process = process
    this.held = held
  }

  /** Lets everything through from now on. */
  release(): void {
    this.#process.stdin.write('go\n')
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#process[Symbol.asyncDispose]()
  }
}

/** Starts the relay on the standby; it listens when this returns. */
export async function startBrake(lab: Lab, { afterMiB = 4 } = {}): Promise<Brake> {
  // The hosts have a /tmp of their own, so a checkout may not be there for them.
  const program = '/var/lib/brake-process.mjs'
  await lab.writeFile(
    'standby',
    program,
    await readFile(join(ROOT, 'dist', 'test', 'lab', 'brake-process.js'), 'utf8'),
  )
  await lab.standby(['rm', '-f', BRAKE_SOCKET])
  const process = lab.spawn('standby', [
    ...['node', program, BRAKE_SOCKET, ADDRESS.source, '10809'],
    String(afterMiB * MIB),
  ])
  let said = ''
  let tell: (() => void) | undefined
  process.stdout.on('data', (chunk: Buffer) => {
    said += chunk.toString()
    tell?.()
  })
  const hear = (word: string): Promise<void> =>
    new Promise((resolve, reject) => {
      tell = () => {
        if (said.includes(`${word}\n`)) resolve()
      }
      tell()
      void process.result.then(({ stderr }) => reject(new Error(`the brake ended: ${stderr}`)))
    })
  await hear('ready')
  const held = hear('held')
  // Whoever does not wait for it must not be told that the brake was put away.
  held.catch(() => undefined)
  return new Brake(process, held)
}
