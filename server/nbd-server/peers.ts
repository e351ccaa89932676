// Whether the client of an nbd-server is still there, by the kernel's list of sockets: an nbd-server that hangs or spins
// does not notice it itself.

import { readdir, readlink, stat } from 'node:fs/promises'
import { run } from '../../shared/host/run.ts'

/** Inode of a client's socket -> whether the other end is there. */
export type Sockets = ReadonlyMap<string, 'open' | 'closed'>

/** Sockets of TCP and those of unix listeners on this host. @returns undefined when ss(8) does not say */
export async function readSockets(): Promise<Sockets | undefined> {
  const [tcp, unix] = await Promise.all([
    run('ss', ['-H', '-n', '-a', '-e', '-t'], { timeoutMs: 5000 }),
    run('ss', ['-H', '-n', '-a', '-x'], { timeoutMs: 5000 }),
  ])
  return tcp.exitCode === 0 && unix.exitCode === 0
    ? parseSockets(tcp.stdout, unix.stdout)
    : undefined
}

/** Reads what `ss -Hnaet` and `ss -Hnax` print. A socket that listens, or that no listener accepted, is no client's. */
export function parseSockets(tcp: string, unix: string): Sockets {
  const found = new Map<string, 'open' | 'closed'>()
  for (const line of tcp.split('\n')) {
    const [state] = line.split(' ')
    const inode = /\bino:(\d+)/.exec(line)?.[1]
    if (inode !== undefined && inode !== '0' && state !== 'LISTEN')
      found.set(inode, state === 'ESTAB' ? 'open' : 'closed')
  }
  // Where the kernel does not tell the peers, ss prints 0 for each: some socket of a host always has one.
  const knowsPeers = /^u_str\s+ESTAB\s.*\s[1-9]\d*\s*$/m.test(unix)
  for (const line of knowsPeers ? unix.split('\n') : []) {
    // Accepted sockets bear their listener's path; the peer's inode is 0 when it has gone.
    const match = /^u_str\s+ESTAB\s+\d+\s+\d+\s+[/@]\S*\s+(\d+)\s+\S+\s+(\d+)/.exec(line)
    if (match?.[1] !== undefined) found.set(match[1], match[2] === '0' ? 'closed' : 'open')
  }
  return found
}

/** Inodes of the sockets that a process has open. */
export async function socketsOf(pid: number): Promise<string[]> {
  const targets = await descriptors(pid)
  return targets.flatMap(({ target }) => /^socket:\[(\d+)\]$/.exec(target)?.[1] ?? [])
}

/**
 * Whether a process's client is there. `gone` also when its socket was in the list before and is in it no more, as one that
 * the client has reset; `unknown` for sockets of another network.
 */
export function peerOf(
  inodes: readonly string[],
  sockets: Sockets,
  seenBefore: boolean,
): 'there' | 'gone' | 'unknown' {
  const states = inodes.map(inode => sockets.get(inode)).filter(state => state !== undefined)
  if (states.includes('open')) return 'there'
  return states.includes('closed') || seenBefore ? 'gone' : 'unknown'
}

/** Whether a process has a file open, by whatever path. */
export async function hasOpen(pid: number, file: string): Promise<boolean> {
  const wanted = await stat(file).catch(() => undefined)
  if (!wanted) return false
  for (const { fd } of await descriptors(pid)) {
    const found = await stat(fd).catch(() => undefined)
    if (found && found.dev === wanted.dev && found.ino === wanted.ino) return true
  }
  return false
}

async function descriptors(pid: number): Promise<{ fd: string; target: string }[]> {
  const directory = `/proc/${pid}/fd`
  const names = await readdir(directory).catch(() => [])
  return Promise.all(
    names.map(async name => {
      const fd = `${directory}/${name}`
      return { fd, target: await readlink(fd).catch(() => '') }
    }),
  )
}
