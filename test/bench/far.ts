// The rows about distance: our pull over a line of a gigabit a second, next door and 10 and 50 ms away (there and back).

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { writeFile } from 'node:fs/promises'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Cleanup } from '../../shared/cleanup.ts'
import { knowHosts } from '../client/sshd.ts'
import { childEnvironment } from '../lab/environment.ts'
import { ourPull, type Row } from './rows.ts'
import type { Ways } from './ways.ts'
import type { Served } from './world.ts'

/** Milliseconds there and back. */
const ROUND_TRIPS = [0, 10, 50]
export const FAR = ROUND_TRIPS.flatMap(ms => [`ssh-${ms}ms`, `tcp-${ms}ms`])

/** @param ways where the real servers are */
export async function farRows(
  folder: string,
  served: Served,
  { ssh, tcp }: Ways,
  cleanup: Cleanup,
): Promise<Row[]> {
  const rows: Row[] = []
  const known: string[] = [...ssh.known]
  for (const ms of ROUND_TRIPS) {
    const sshPort = await startLine(ssh.port, ms / 2, cleanup)
    const tcpPort = await startLine(tcp, ms / 2, cleanup)
    known.push(`[127.0.0.1]:${sshPort} ${ssh.hostKey}`)
    // Both have their gate by ssh, which also tells how far the source is.
    const gate = `host: 127.0.0.1, ssh: { port: ${sshPort}, identity: ${ssh.dir}/id, knownHosts: ${ssh.dir}/known_hosts }`
    for (const [name, way] of [
      [`ssh-${ms}ms`, `transport: ssh, ${gate}`],
      [`tcp-${ms}ms`, `transport: tcp, port: ${tcpPort}, ${gate}`],
    ] as const) {
      const store = path.join(folder, `${name}.store`)
      const config = path.join(folder, `${name}.yaml`)
      await writeFile(
        config,
        `store: ${store}\nsources: { far: { ${way} } }\ndomains: { mydomain: { source: far } }\n`,
      )
      const title = `clone pull by ${way.slice(11, 14)}, 1 Gbit/s, ${ms} ms away`
      rows.push(ourPull(name, title, folder, { ...served, config, store }))
    }
  }
  knowHosts(ssh.dir, ...known)
  return rows
}

/** @returns the port of a line to `port` */
async function startLine(port: number, oneWayMs: number, cleanup: Cleanup): Promise<number> {
  const program = fileURLToPath(new URL('./line-process.js', import.meta.url))
  const line = spawn(process.execPath, [program, String(port), String(oneWayMs)], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: childEnvironment(),
  })
  cleanup.defer(() => void line.kill('SIGKILL'))
  const [text] = (await once(line.stdout, 'data')) as [Buffer]
  return Number(text.toString())
}
