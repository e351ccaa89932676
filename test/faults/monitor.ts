// A second monitor of the guest's QEMU, of which libvirt knows nothing: what QEMU itself says while libvirtd is dead, asleep
// or wrong.

import { connect, type Socket } from 'node:net'
import { createInterface } from 'node:readline'
import { setTimeout as delay } from 'node:timers/promises'
import { z } from 'zod'
import type { Lab } from '../lab/lab.ts'

const SOCKET = '/tmp/faults-qmp.sock'
const ANSWER_MS = 10_000
const OPEN_ATTEMPTS = 5

const message = z.object({
  id: z.number().optional(),
  return: z.unknown().optional(),
  error: z.object({ desc: z.string() }).optional(),
})

interface Image {
  readonly filename: string
  readonly 'backing-image'?: Image | undefined
}
const image: z.ZodType<Image> = z.object({
  filename: z.string(),
  get 'backing-image'() {
    return image.optional()
  },
})
const blocks = z.array(z.object({ inserted: z.object({ image }).optional() }))
const nodes = z.array(z.object({ file: z.string() }))
const exports = z.array(z.object({ id: z.string() }))

/** The domain's definition with the second monitor in it. */
export function withSecondMonitor(xml: string): string {
  return xml
    .replace(
      /<domain ([^>]*)>/,
      `<domain $1 xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>`,
    )
    .replace(
      '</domain>',
      `<qemu:commandline><qemu:arg value='-qmp'/><qemu:arg value='unix:${SOCKET},server=on,wait=off'/></qemu:commandline></domain>`,
    )
}

/** One connection to QEMU; QEMU has one at a time. */
export class Monitor implements Disposable {
  readonly #socket: Socket
  readonly #waiting = new Map<number, (answer: z.infer<typeof message> | undefined) => void>()
  #last = 0

  private constructor(socket: Socket) {
    this.#socket = socket
    socket.on('error', () => undefined)
    socket.on('close', () => {
      for (const tell of this.#waiting.values()) tell(undefined)
    })
    // readline passes the socket's errors on as its own.
    createInterface(socket)
      .on('error', () => undefined)
      .on('line', line => this.#hear(line))
  }

  #hear(line: string): void {
    const said = message.safeParse(parse(line))
    if (!said.success) return
    if (said.data.id !== undefined) this.#waiting.get(said.data.id)?.(said.data)
  }

  /** @throws when no QEMU of the guest answers on the source */
  static async open(lab: Pick<Lab, 'path'>): Promise<Monitor> {
    // QEMU may still be busy with the end of the connection before.
    for (let left = OPEN_ATTEMPTS; ; left--) {
      try {
        return await Monitor.#openOnce(lab)
      } catch (error) {
        if (left === 0) throw error
        await delay(100)
      }
    }
  }

  static async #openOnce(lab: Pick<Lab, 'path'>): Promise<Monitor> {
    const path = await lab.path('source', SOCKET)
    const socket = await new Promise<Socket>((resolve, reject) => {
      const dialled = connect(path)
      dialled.once('connect', () => resolve(dialled)).once('error', reject)
    })
    const monitor = new Monitor(socket)
    await monitor.ask('qmp_capabilities').catch((error: unknown) => {
      monitor[Symbol.dispose]()
      throw error
    })
    return monitor
  }

  async ask(execute: string, parameters: object = {}): Promise<unknown> {
    if (this.#socket.destroyed) throw new Error(`QEMU went before ${execute}`)
    const id = ++this.#last
    this.#socket.write(`${JSON.stringify({ execute, arguments: parameters, id })}\n`)
    const answer = await new Promise<z.infer<typeof message> | undefined>(resolve => {
      const late = setTimeout(() => resolve(undefined), ANSWER_MS)
      this.#waiting.set(id, said => {
        clearTimeout(late)
        resolve(said)
      })
    })
    this.#waiting.delete(id)
    if (!answer) throw new Error(`QEMU did not answer ${execute}`)
    if (answer.error) throw new Error(`QEMU ${execute}: ${answer.error.desc}`)
    return answer.return
  }

  /** What of ours reads bitmaps: exports, and copies of bitmaps for them. */
  async readers(): Promise<string[]> {
    const ids = exports.parse(await this.ask('query-block-exports')).map(({ id }) => id)
    const text = JSON.stringify(await this.ask('query-named-block-nodes'))
    return [...ids, ...new Set(text.match(/nbd-clone-read-[\w-]+/g))]
  }

  /** The images of every disk, the one that takes the guest's writes first. */
  async chains(): Promise<string[][]> {
    const devices = blocks.parse(await this.ask('query-block'))
    return devices.flatMap(({ inserted }) => {
      const chain: string[] = []
      for (let at = inserted?.image; at; at = at['backing-image']) chain.push(at.filename)
      return chain.length === 0 ? [] : [chain]
    })
  }

  /** Every file that QEMU has as a block node, in use by a disk or not. */
  async files(): Promise<string[]> {
    return nodes
      .parse(await this.ask('query-named-block-nodes', { flat: true }))
      .map(({ file }) => file)
  }

  [Symbol.dispose](): void {
    this.#socket.destroy()
  }
}

/** undefined when it is no JSON: the last line of a QEMU that was killed may be torn. */
function parse(line: string): unknown {
  try {
    return JSON.parse(line)
  } catch {
    return undefined
  }
}
