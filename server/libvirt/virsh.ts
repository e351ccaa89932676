// virsh as a child process. Its exit status says only that a call failed; what is true is read from QEMU (graph.ts).

import { z } from 'zod'
import { Failure } from '../../shared/failures.ts'
import { reasonOf, run, type RunResult } from '../../shared/host/run.ts'

export interface Virsh {
  /** Runs one virsh command to its end; never throws for its exit status. Default deadline 60 s. */
  run(args: readonly string[], timeoutMs?: number): Promise<RunResult>
  /** Standard output of a command that must succeed. @throws Failure SOURCE_REFUSED with libvirt's sentence */
  text(args: readonly string[]): Promise<string>
  /** One QMP command through the domain's monitor. @throws Failure SOURCE_REFUSED */
  qmp<S extends z.ZodType>(domain: string, command: QmpCommand, shape: S): Promise<z.infer<S>>
  readonly uri: string
}

export interface QmpCommand {
  readonly execute: string
  readonly arguments?: Record<string, unknown>
}

const qmpReply = z.object({ return: z.unknown() })
const qmpError = z.object({ error: z.object({ class: z.string(), desc: z.string() }) })

/** @param uri libvirt connection URI */
export function createVirsh(uri: string): Virsh {
  const call = (args: readonly string[], timeoutMs?: number): Promise<RunResult> =>
    run('virsh', ['-q', '-c', uri, ...args], { timeoutMs })
  const text = async (args: readonly string[]): Promise<string> => {
    const result = await call(args)
    if (result.exitCode === 0) return result.stdout
    throw new Failure('SOURCE_REFUSED', `virsh ${args[0] ?? ''}: ${reasonOf(result)}`, {
      remedy: result.exitCode === 127 ? 'install libvirt-clients on the source' : undefined,
    })
  }
  return {
    uri,
    run: call,
    text,
    async qmp(domain, command, shape) {
      const reply: unknown = JSON.parse(
        await text(['qemu-monitor-command', domain, JSON.stringify(command)]),
      )
      const refused = qmpError.safeParse(reply)
      if (refused.success)
        throw new Failure('SOURCE_REFUSED', `QEMU ${command.execute}: ${refused.data.error.desc}`)
      const answer = shape.safeParse(qmpReply.parse(reply).return)
      if (answer.success) return answer.data
      throw new Failure(
        'SOURCE_REFUSED',
        `QEMU ${command.execute}: an answer that is not understood`,
        {
          cause: answer.error,
        },
      )
    },
  }
}
