// What an nbd-server moved to its client, by the kernel's account of its reads and writes.

import { readFile } from 'node:fs/promises'

export interface Traffic {
  /** Bytes moved as of the last look; never goes back. */
  bytes(): number
  /** Reads the account again. A process that has gone keeps its last one. */
  look(): Promise<void>
}

/** A connection's nbd-server must be young: it counts from the start of the process. @param pid undefined when it never started */
export function measureTraffic(pid: number | undefined): Traffic {
  let moved = 0
  let looks = 0
  let readBefore = 0
  return {
    bytes: () => moved,
    async look() {
      const account = await readFile(`/proc/${pid ?? 0}/io`, 'utf8').catch(() => undefined)
      if (account === undefined) return
      const { read, written } = parseAccount(account)
      // The prerun's reads are added to its parent's when it ends, so the first look comes too early for them.
      if (looks++ < 2) readBefore = read
      // Replies are written with write(2), those of TLS are not, and show only in what is read of the disk.
      moved = Math.max(moved, written, read - readBefore)
    },
  }
}

/** `rchar` and `wchar` of /proc/PID/io: bytes, from the page cache and to sockets too. */
export function parseAccount(text: string): { read: number; written: number } {
  const field = (name: string): number =>
    Number(new RegExp(`^${name}: (\\d+)$`, 'm').exec(text)?.[1] ?? 0)
  return { read: field('rchar'), written: field('wchar') }
}
