// The gate of a source that is this host: a child.

import { spawn, type ChildProcessWithoutNullStreams } from 'node:child_process'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { Failure } from '../../shared/failures.ts'
import { GRACE_MS, type Carrier } from './carrier.ts'
import { codeOfExit, lastWords, type Ending } from './last-words.ts'

/** Starts a command as a gate. @throws Failure SOURCE_UNREACHABLE when it cannot be started */
export async function startChild(command: readonly string[]): Promise<Carrier> {
  const [file, ...args] = command
  // A process group of its own, so that Ctrl-C reaches us alone and the session can still be released.
  const child = spawn(file ?? '', args, { stdio: ['pipe', 'pipe', 'pipe'], detached: true })
  const words = lastWords(child.stderr)
  try {
    await once(child, 'spawn')
  } catch (error) {
    throw new Failure('SOURCE_UNREACHABLE', `cannot start its gate: ${String(error)}`, {
      cause: error,
    })
  }
  // A kill that fails must not end the program.
  child.on('error', () => undefined)
  const over = new Promise<Ending>(resolve =>
    child.once('close', (exit: number | null, signal) => {
      const { reason, remedy } = words()
      const how = `it ended with ${signal ?? `exit status ${String(exit)}`}`
      resolve({ code: codeOfExit(exit ?? undefined), reason: reason || how, remedy })
    }),
  )
  return {
    output: child.stdout,
    input: child.stdin,
    over,
    abandon: () => void child.kill('SIGTERM'),
    async [Symbol.asyncDispose]() {
      await endChild(child)
      // What nobody reads any more would keep this program.
      for (const stream of child.stdio) stream?.destroy()
    },
  }
}

/** Ends a child: its input is closed, then SIGTERM, then SIGKILL. */
async function endChild(child: ChildProcessWithoutNullStreams): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const exited = once(child, 'exit')
  child.stdin.end()
  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    const waited = new AbortController()
    const late = sleep(GRACE_MS, 'late', { signal: waited.signal }).catch(() => undefined)
    const first = await Promise.race([exited, late])
    waited.abort()
    if (first !== 'late') return
    child.kill(signal)
  }
  await exited
}
