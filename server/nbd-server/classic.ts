// A child of the classic nbd-server daemon: not ours to start, but its death ends its membership, so it is watched.

import { readFile } from 'node:fs/promises'
import { setTimeout as delay } from 'node:timers/promises'
import { Failure } from '../../shared/failures.ts'
import { processStart } from '../../shared/host/process.ts'
import { killIfThere } from '../session/recover.ts'
import type { NbdServer } from './process.ts'

const LOOK_MS = 500

/** Watches the nbd-server process whose hook called. @throws Failure SOURCE_REFUSED when it is none */
export async function watchProcess(pid: number): Promise<NbdServer> {
  const born = await processStart(pid)
  const command = (await readFile(`/proc/${pid}/comm`, 'utf8').catch(() => '')).trim()
  // An orphaned hook has another parent, which must never be taken for the connection and killed with it.
  if (born === undefined || command !== 'nbd-server')
    throw new Failure(
      'SOURCE_REFUSED',
      `process ${pid} is no nbd-server: the hook has outlived its connection`,
    )
  let running = true
  const ended = (async () => {
    while ((await processStart(pid)) === born) await delay(LOOK_MS, undefined, { ref: false })
    running = false
  })()
  return {
    pid,
    isRunning: () => running,
    async kill() {
      if ((await processStart(pid)) === born) killIfThere(pid)
      await ended
    },
    ended,
  }
}
