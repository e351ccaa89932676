// Watches the fsynced journal from outside the source, and stops serve the moment it has recorded a step.

import { readFileSync, watch } from 'node:fs'
import { dirname } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { readProcess, signal } from '../lab/processes.ts'
import { JOURNAL, type Puller, type World } from './world.ts'

/** serve may be past the step when the signal comes; then it goes on, and another session is tried. */
const ATTEMPTS = 8

/** The last step in a journal; undefined when there is no journal, or none that can be read now. */
export function lastStepIn(file: string): string | undefined {
  try {
    const line = readFileSync(file, 'utf8').trimEnd().split('\n').at(-1) ?? ''
    return /^\{"step":"([^"]+)"/.exec(line)?.[1]
  } catch {
    return undefined
  }
}

/** Starts clients until one makes serve stand at this step. @returns that client, and how serve goes on */
export async function stopAtStep(
  world: World,
  step: string,
  begin: () => Puller,
): Promise<{ puller: Puller; resume: () => void }> {
  const file = await world.lab.path('source', JOURNAL)
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    const pid = world.serve.process.pid
    if (pid === undefined) throw new Error('serve does not run')
    // nsenter, its parent, stops itself with its child.
    const stood = [pid, readProcess(pid)?.parent ?? pid]
    const resume = (): void => {
      for (const each of stood) signal(each, 'SIGCONT')
    }
    // The journal is still the last session's at first, and that one is done.
    const seen = { begun: false, stopped: false, blind: false }
    const look = (): void => {
      const last = lastStepIn(file)
      seen.begun ||= last !== undefined && last !== 'done'
      if (seen.stopped || !seen.begun || last !== step) return
      signal(pid, 'SIGSTOP')
      seen.stopped = true
    }
    const watcher = watch(dirname(file), look).on('error', () => (seen.blind = true))
    const puller = begin()
    while (!seen.blind && !seen.stopped && !puller.isOver()) await delay(5)
    watcher.close()
    if (seen.stopped && lastStepIn(file) === step) return { puller, resume }
    resume()
    await puller.result
    await world.untilStep('done')
  }
  throw new Error(`serve did not stand at ${step} in ${ATTEMPTS} attempts`)
}
