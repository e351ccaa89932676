// virsh as a child process. Its exit status says only that a call failed; what is true is read from QEMU (graph.ts).

import { Failure } from '../../shared/failures.ts'
import { reasonOf, run, type RunResult } from '../../shared/host/run.ts'
import { readReply, type Monitor } from './monitor.ts'

export interface Virsh {
  /** Runs one virsh command to its end; never throws for its exit status. Default deadline 60 s. */
  run(args: readonly string[], timeoutMs?: number): Promise<RunResult>
  /** Standard output of a command that must succeed. @throws Failure SOURCE_REFUSED with libvirt's sentence */
  text(args: readonly string[]): Promise<string>
  /** The monitor of a domain that libvirt says is active. */
  monitor(domain: string): Monitor
  readonly uri: string
}

/** @param uri libvirt connection URI */
export function createVirsh(uri: string): Virsh {
  const call: Virsh['run'] = (args, timeoutMs) =>
    run('virsh', ['-q', '-c', uri, ...args], { timeoutMs, diesWithUs: true })
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
    monitor: domain => ({
      async execute(command, shape) {
        const reply = await text(['qemu-monitor-command', domain, JSON.stringify(command)])
        return readReply(command, JSON.parse(reply), shape)
      },
    }),
  }
}
