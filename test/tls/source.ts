// A source with a TLS listener on loopback for one test: certificates by the product's own commands, and its log.

import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { tlsInit, tlsIssue } from '../../server/commands/tls.ts'
import { issue, type Subject } from '../../server/tls/certificates.ts'
import { openAuthority } from '../../server/tls/folder.ts'
import { tlsFolder, type TlsFolder } from '../../server/tls/paths.ts'
import type { NbdTls } from '../../shared/nbd/client.ts'
import { ROOT } from '../lab/names.ts'
import { PLAIN } from '../store/built.ts'

interface TestLike {
  teardown(step: () => unknown): void
}

export interface Line {
  readonly msg: string
  readonly client?: string
  readonly reason?: string
  readonly peer?: string
}

export interface TlsSource {
  readonly dir: string
  readonly port: number
  /** Serve's log so far. */
  readonly lines: readonly Line[]
  /** Runs clone-server as built. @returns its exit status and what it said */
  cloneServer(...args: readonly string[]): { status: number | null; out: string; err: string }
  /** Issues a certificate. @returns the folder with ca-cert.pem, client-cert.pem and client-key.pem */
  issue(name: string): Promise<string>
  /** The same from the authority itself, whatever the commands would refuse. @param days below 0: over already */
  forge(subject: Subject, days: number): Promise<NbdTls>
  readonly tls: TlsFolder
  /** Gives a client rights. */
  authorize(name: string, domains: readonly string[]): void
  /** Asks it to stop, and waits for its end. */
  stop(): Promise<void>
  counts(): Promise<{ running: number; unknown: number; waiting: number }>
  /** Waits for a line of the log. */
  logged(wanted: Partial<Line> & { reasonLike?: RegExp }): Promise<Line>
}

/** @param images domain -> bytes of its one disk, `vda` */
export async function tlsSource(
  t: TestLike,
  images: Readonly<Record<string, Buffer>>,
): Promise<TlsSource> {
  const dir = mkdtempSync(path.join(tmpdir(), 'nbd-clone-test-'))
  t.teardown(() => rmSync(dir, { recursive: true, force: true }))
  const config = path.join(dir, 'source.yaml')
  mkdirSync(path.join(dir, 'run'))
  mkdirSync(path.join(dir, 'clients'))
  for (const [domain, bytes] of Object.entries(images))
    writeFileSync(path.join(dir, `${domain}.raw`), bytes)
  const names = Object.keys(images).map(domain => `${domain}: {}`)
  writeFileSync(
    config,
    `runDir: ${dir}/run\nstateDir: ${dir}/state\nlisten: { tls: { host: 127.0.0.1 } }\ndomains: { ${names.join(', ')} }\n`,
  )
  const cloneServer: TlsSource['cloneServer'] = (...args) => {
    const cli = path.join(ROOT, 'dist/server/cli.js')
    const { status, stdout, stderr } = spawnSync(
      process.execPath,
      [cli, '--config', config, ...args],
      { env: PLAIN, encoding: 'utf8', cwd: dir },
    )
    return { status, out: stdout, err: stderr }
  }
  await tlsInit({ config, host: 'localhost,127.0.0.1', days: 1, 'dry-run': false })
  const tls = tlsFolder(config)
  let issued = 0

  const program = path.join(ROOT, 'dist/test/tls/source-process.js')
  const child = spawn(process.execPath, [program, config, dir], {
    env: PLAIN,
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  const exited = once(child, 'exit')
  const stop = async (): Promise<void> => {
    child.kill('SIGTERM')
    await exited
  }
  t.teardown(stop)
  const lines: Line[] = []
  createInterface(child.stderr).on('line', line => {
    lines.push(line.startsWith('{') ? (JSON.parse(line) as Line) : { msg: line })
  })
  const [first] = (await Promise.race([once(child.stdout, 'data'), exited])) as unknown[]
  const port = Number(String(first))
  if (!Number.isInteger(port) || port < 1)
    throw new Error(`did not start: ${lines.map(line => line.msg).join('\n')}`)

  return {
    dir,
    port,
    lines,
    cloneServer,
    stop,
    tls,
    async issue(name) {
      const out = path.join(dir, `issued-${issued++}`)
      await tlsIssue({ config, name, out, days: 1, 'dry-run': false })
      return out
    },
    async forge(subject, days) {
      const { cert, key } = await issue(await openAuthority(tls), subject, days)
      return { ca: readFileSync(tls.caCert, 'utf8'), cert, key }
    },
    authorize(name, domains) {
      writeFileSync(path.join(dir, 'clients', `${name}.yaml`), `domains: [${domains.join(', ')}]\n`)
    },
    async counts() {
      const socket = connect(`${dir}/run/serve.sock.counts`)
      const [text] = (await once(socket, 'data')) as [Buffer]
      return JSON.parse(text.toString()) as Awaited<ReturnType<TlsSource['counts']>>
    },
    async logged({ reasonLike, ...wanted }) {
      const fits = (line: Line): boolean =>
        Object.entries(wanted).every(([key, value]) => line[key as keyof Line] === value) &&
        (reasonLike?.test(line.reason ?? '') ?? true)
      for (let tries = 0; tries < 1000; tries++) {
        const found = lines.find(fits)
        if (found) return found
        await new Promise(resolve => setTimeout(resolve, 10))
      }
      throw new Error(`not logged: ${JSON.stringify(wanted)}; but ${JSON.stringify(lines)}`)
    },
  }
}
