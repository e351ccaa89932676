// Freezing and thawing a guest's file systems. A freeze is never left to one process: before it, a detached dead-man is
// started that thaws when the deadline passes and goes on until a thaw is confirmed, whatever becomes of us.

import { spawn } from 'node:child_process'
import { readdir, readFile } from 'node:fs/promises'
import { setTimeout as delay } from 'node:timers/promises'
import { Failure } from '../../shared/failures.ts'
import { reasonOf } from '../../shared/host/run.ts'
import type { Virsh } from './virsh.ts'

/** How long the dead-man goes on trying (10 min), in seconds. */
const THAW_FOR_SECONDS = 600

// A shell, not Node: it must start before the freeze at no cost and survive anything that happens to us.
const DEAD_MAN = `
trap '' HUP INT TERM
sleep "$3"
end=$(( $(date +%s) + $4 ))
until timeout 15 virsh -q -c "$1" domfsthaw "$2" >/dev/null 2>&1; do
  [ "$(date +%s)" -lt "$end" ] || exit 1
  sleep 1
done`
const DEAD_MAN_NAME = 'nbd-clone-dead-man'

export interface DeadMan {
  /** When it thaws, by performance.now(): a snapshot that is not done by then is not quiesced. */
  readonly deadline: number
  /** Ends it: only after a confirmed thaw, or when nothing was frozen. */
  dismiss(): void
}

/** Starts the dead-man for a domain. @param deadlineMs from now until it thaws. @throws Failure SNAPSHOT_FAILED */
export function startDeadMan(virsh: Virsh, domain: string, deadlineMs: number): DeadMan {
  const deadline = performance.now() + deadlineMs
  const seconds = String(Math.ceil(deadlineMs / 1000))
  const child = spawn(
    '/bin/sh',
    ['-c', DEAD_MAN, DEAD_MAN_NAME, virsh.uri, domain, seconds, String(THAW_FOR_SECONDS)],
    { detached: true, stdio: 'ignore' },
  )
  child.on('error', () => undefined)
  child.unref()
  const { pid } = child
  if (pid === undefined)
    throw new Failure(
      'SNAPSHOT_FAILED',
      `domain ${domain} is not frozen: nothing could be started that would thaw it`,
    )
  return { deadline, dismiss: () => endGroup(pid) }
}

/** Dead-men of this domain that are still on duty, of ours or of an earlier serve: process ids. */
export async function deadMenOnDuty(domain: string): Promise<number[]> {
  const pids = (await readdir('/proc')).filter(name => /^\d+$/.test(name))
  const found = await Promise.all(
    pids.map(async pid => {
      const words = (await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')).split('\0')
      const at = words.indexOf(DEAD_MAN_NAME)
      return at !== -1 && words[at + 2] === domain ? Number(pid) : undefined
    }),
  )
  return found.filter(pid => pid !== undefined)
}

/** A dead-man leads its own process group, with its sleep and virsh in it; it ignores all that can be ignored. */
export function endGroup(leader: number): void {
  try {
    process.kill(-leader, 'SIGKILL')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
  }
}

/** libvirt's words for "the request never reached a guest agent", so nothing was frozen. */
const NO_AGENT = /guest agent is not configured|guest agent is not connected|is not running/i

export function isNoAgent(reason: string): boolean {
  return NO_AGENT.test(reason)
}

/** Why there is no guest agent to ask; undefined when one answers, or may only be slow. */
export async function agentFault(virsh: Virsh, domain: string): Promise<string | undefined> {
  const ping = ['qemu-agent-command', domain, '--timeout', '5', '{"execute":"guest-ping"}']
  const result = await virsh.run(ping, 15_000)
  const reason = reasonOf(result)
  return result.exitCode !== 0 && isNoAgent(reason) ? reason : undefined
}

export type FreezeResult =
  | { readonly kind: 'frozen' }
  /** Nothing was frozen: there is no agent. */
  | { readonly kind: 'no agent'; readonly reason: string }
  /** The guest may freeze late: it must be thawed until that is confirmed. */
  | { readonly kind: 'unknown'; readonly reason: string }

/** Asks the guest agent to freeze all file systems. @param deadlineMs after which the answer is not waited for */
export async function freeze(
  virsh: Virsh,
  domain: string,
  deadlineMs: number,
): Promise<FreezeResult> {
  const result = await virsh.run(['domfsfreeze', domain], deadlineMs)
  if (result.exitCode === 0) return { kind: 'frozen' }
  const reason = reasonOf(result)
  return { kind: isNoAgent(reason) ? 'no agent' : 'unknown', reason }
}

/**
 * Thaws, again and again until libvirt confirms it; thawing a thawed guest is harmless.
 * @param patienceMs how long to try
 * @returns whether it is confirmed
 */
export async function thaw(virsh: Virsh, domain: string, patienceMs: number): Promise<boolean> {
  const end = Date.now() + patienceMs
  for (;;) {
    const result = await virsh.run(['domfsthaw', domain], 15_000)
    if (result.exitCode === 0) return true
    if (Date.now() >= end) return false
    await delay(Math.min(500, patienceMs))
  }
}
