// QEMU's monitor (QMP): reached through libvirt, or on QEMU's own socket when libvirt has lost sight of a running domain.

import { connect } from 'node:net'
import { createInterface } from 'node:readline'
import { z } from 'zod'
import { Failure, toFailure } from '../../shared/failures.ts'

export interface QmpCommand {
  readonly execute: string
  readonly arguments?: Record<string, unknown>
}

export interface Monitor {
  /** One QMP command. @throws Failure SOURCE_REFUSED with QEMU's sentence, or when the answer is not understood */
  execute<S extends z.ZodType>(command: QmpCommand, shape: S): Promise<z.infer<S>>
}

/** For commands whose answer says nothing. */
export const nothing = z.object({})

const success = z.object({ return: z.unknown() })
const failure = z.object({ error: z.object({ class: z.string(), desc: z.string() }) })

const ANSWER_MS = 10_000

/** Reads a QMP reply. @throws Failure SOURCE_REFUSED */
export function readReply<S extends z.ZodType>(
  command: QmpCommand,
  reply: unknown,
  shape: S,
): z.infer<S> {
  const refused = failure.safeParse(reply)
  if (refused.success)
    throw new Failure('SOURCE_REFUSED', `QEMU ${command.execute}: ${refused.data.error.desc}`)
  const answer = shape.safeParse(success.safeParse(reply).data?.return)
  if (answer.success) return answer.data
  throw new Failure('SOURCE_REFUSED', `QEMU ${command.execute}: an answer that is not understood`, {
    cause: answer.error,
  })
}

/**
 * Connects to a monitor socket that nobody else uses: QEMU talks to one client at a time, and libvirt is it while it knows
 * the domain.
 * @throws Failure SOURCE_REFUSED when nobody answers within 10 s
 */
export async function openMonitorSocket(path: string): Promise<Monitor & AsyncDisposable> {
  const socket = connect(path)
  const waiting: { resolve: (reply: unknown) => void; reject: (error: Error) => void }[] = []
  let lost: Error | undefined
  const lose = (error: Error): void => {
    lost ??= error
    for (const one of waiting.splice(0)) one.reject(lost)
    socket.destroy()
  }
  socket.setTimeout(ANSWER_MS, () => {
    if (waiting.length > 0) lose(new Error(`no answer on ${path}`))
  })
  socket.on('error', lose)
  socket.on('close', () => lose(new Error(`${path} was closed`)))
  const lines = createInterface(socket)
  lines.on('error', lose)
  lines.on('line', line => {
    try {
      const message = z.record(z.string(), z.unknown()).parse(JSON.parse(line))
      // Events come between replies; what they tell is read again from the graph.
      if (!('event' in message)) waiting.shift()?.resolve(message)
    } catch (error) {
      lose(new Error(`${path} does not speak QMP`, { cause: error }))
    }
  })
  const next = (): Promise<unknown> =>
    new Promise((resolve, reject) => {
      if (lost) reject(lost)
      else waiting.push({ resolve, reject })
    })

  const monitor: Monitor & AsyncDisposable = {
    async execute(command, shape) {
      const reply = next()
      socket.write(`${JSON.stringify(command)}\n`)
      return readReply(command, await reply, shape)
    },
    [Symbol.asyncDispose]() {
      lines.close()
      socket.destroy()
      return Promise.resolve()
    },
  }
  try {
    await next()
    await monitor.execute({ execute: 'qmp_capabilities' }, nothing)
    return monitor
  } catch (error) {
    await monitor[Symbol.asyncDispose]()
    throw new Failure('SOURCE_REFUSED', `QEMU's monitor: ${toFailure(error).message}`, {
      cause: error,
    })
  }
}
