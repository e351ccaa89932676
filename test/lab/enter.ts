// Running commands inside a host. The way in is enter.sh, for people and for programs alike.

import { constants } from 'node:os'
import type { Readable, Writable } from 'node:stream'
import { execa } from 'execa'
import { Failure } from '../../shared/failures.ts'
import { childEnvironment } from './environment.ts'
import { script, type HostName } from './names.ts'
import { listProcesses, namespaceInode, signal } from './processes.ts'

export interface CommandResult {
  /** Without its last newline, like stderr. */
  readonly stdout: string
  readonly stderr: string
  /** 128 + N for a command that signal N ended. */
  readonly exitCode: number
}

export interface CommandOptions {
  /** What the command reads; nothing when left out. */
  readonly input?: string
  /** false: a failed command is a result like any other. */
  readonly reject?: boolean
  /** Milliseconds after which the command is killed, which fails whatever `reject` says. */
  readonly timeout?: number
}

/** The program and arguments that run argv in a host. */
export function enterArgv(host: HostName, argv: readonly string[]): [string, string[]] {
  return ['sh', [script('enter.sh'), host, ...argv]]
}

/** A command that runs in a host; leaving its `await using` kills it. */
export class HostProcess implements AsyncDisposable {
  readonly stdin: Writable
  readonly stdout: Readable
  readonly stderr: Readable
  /** How it ended; never rejects. */
  readonly result: Promise<CommandResult>
  readonly #pid: number | undefined
  #ended = false

  constructor(host: HostName, argv: readonly string[]) {
    const [file, args] = enterArgv(host, argv)
    const child = execa(file, args, {
      stdin: 'pipe',
      reject: false,
      env: childEnvironment(),
      extendEnv: false,
    })
    this.stdin = child.stdin
    this.stdout = child.stdout
    this.stderr = child.stderr
    this.#pid = child.pid
    // A command that ends before it has read its input is no failure of ours.
    child.stdin.on('error', () => undefined)
    this.result = child.then(({ stdout, stderr, exitCode, signal }) => {
      this.#ended = true
      const killed = signal === undefined ? 1 : 128 + constants.signals[signal]
      return { stdout, stderr, exitCode: exitCode ?? killed }
    })
  }

  /** Sends a signal to the command itself; its children get none. One that has ended is fine. */
  signal(name: NodeJS.Signals): void {
    if (this.#ended || this.#pid === undefined) return
    const target = this.pid
    signal(target ?? this.#pid, name)
  }

  /** The command's process id as the machine sees it; undefined while it is on its way in. */
  get pid(): number | undefined {
    const ours = namespaceInode('/proc/self/ns/pid')
    // What we started waits outside; its child is the command, and is in the host's PID namespace.
    return listProcesses().find(({ pid, parent }) => {
      if (parent !== this.#pid) return false
      // A child of enter.sh that ends while we look has none.
      const namespace = namespaceInode(`/proc/${pid}/ns/pid`)
      return namespace !== undefined && namespace !== ours
    })?.pid
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.signal('SIGKILL')
    this.stdout.destroy()
    this.stderr.destroy()
    await this.result
  }
}

/** Runs argv in a host and waits for it. */
export async function inHost(
  host: HostName,
  argv: readonly string[],
  { input, reject = true, timeout }: CommandOptions = {},
): Promise<CommandResult> {
  await using child = new HostProcess(host, argv)
  child.stdin.end(input)
  const what = `${argv.join(' ')} on ${host}`
  const result = await before(timeout, child.result)
  if (result === undefined)
    throw new Failure('INTERNAL', `${what} was still running after ${timeout ?? 0} ms`)
  if (reject && result.exitCode !== 0)
    throw new Failure('INTERNAL', `${what} ended with ${result.exitCode}: ${result.stderr.trim()}`)
  return result
}

/** @returns undefined when the time is over first */
async function before<T>(timeout: number | undefined, promise: Promise<T>): Promise<T | undefined> {
  if (timeout === undefined) return promise
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<undefined>(resolve => {
    timer = setTimeout(() => resolve(undefined), timeout)
  })
  return Promise.race([promise, late]).finally(() => clearTimeout(timer))
}
