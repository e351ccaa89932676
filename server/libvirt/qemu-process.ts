// The QEMU process of a domain, found without libvirt: libvirt can be wrong about whether a domain runs.

import { readdir, readFile } from 'node:fs/promises'
import { z } from 'zod'
import { processStart } from '../../shared/host/process.ts'

export interface QemuProcess {
  readonly pid: number
  /** Names this one process for ever: boot id, process id, start time. */
  readonly identity: string
  /** QEMU's own monitor socket; undefined when its command line does not tell. */
  readonly monitor: string | undefined
}

/** The process that runs the domain of this UUID on this host; undefined when there is none. */
export async function findQemu(uuid: string): Promise<QemuProcess | undefined> {
  const pids = (await readdir('/proc')).filter(name => /^\d+$/.test(name))
  for (const pid of pids) {
    const words = (await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')).split('\0')
    const at = words.indexOf('-uuid')
    if (at === -1 || words[at + 1]?.toLowerCase() !== uuid.toLowerCase()) continue
    const started = await processStart(Number(pid))
    // A process that has ended keeps its command line no longer; one that is about to is not worth waiting for.
    if (started === undefined) continue
    const boot = (await readFile('/proc/sys/kernel/random/boot_id', 'utf8')).trim()
    return {
      pid: Number(pid),
      identity: `${boot}:${pid}:${started}`,
      monitor: monitorOf(words),
    }
  }
  return undefined
}

const secret = z.object({ id: z.literal('masterKey0'), file: z.string() })

/** libvirt makes the monitor socket beside the domain's master key, and passes the socket itself as a descriptor. */
function monitorOf(words: readonly string[]): string | undefined {
  for (const [index, word] of words.entries()) {
    if (words[index - 1] === '-chardev' && word.startsWith('socket,id=charmonitor,path='))
      return word.slice('socket,id=charmonitor,path='.length).split(',')[0]
    if (words[index - 1] !== '-object' || !word.startsWith('{')) continue
    const key = secret.safeParse(JSON.parse(word))
    if (key.success) return key.data.file.replace(/[^/]*$/, 'monitor.sock')
  }
  return undefined
}
