// The rows about the way to a source: our pull over ssh, TLS and tcp, each against what people would use there; and a limit.
// sshd, the gate's relay, rights and the TLS listener are real; the gate that answers for sessions is that of the tests.

import { spawn } from 'node:child_process'
import { rm, symlink, writeFile } from 'node:fs/promises'
import { createServer, type AddressInfo } from 'node:net'
import path from 'node:path'
import type { Cleanup } from '../../shared/cleanup.ts'
import { forcedCommand, knowHosts, makeKey, sshFolder, startSshd } from '../client/sshd.ts'
import { childEnvironment } from '../lab/environment.ts'
import { ROOT } from '../lab/names.ts'
import { tlsSource } from '../tls/source.ts'
import { measure } from './measure.ts'
import { ourPull, type Row } from './rows.ts'
import type { Served } from './world.ts'

export const WAYS = ['ssh', 'ssh-dd', 'tls', 'nbdcopy-tls', 'tcp', 'limit'] as const
/** Of the limited pull: the data in the image, 2 GiB, takes a little over ten seconds. */
const LIMIT = '200MiB/s'

interface Owner {
  teardown(step: () => unknown): void
}

/** Where the servers of the rows are. */
export interface Ways {
  readonly ssh: {
    readonly port: number
    readonly hostKey: string
    /** Of the key and known_hosts. */
    readonly dir: string
    /** Lines of known_hosts. */
    readonly known: readonly string[]
  }
  /** The port of nbd-server. */
  readonly tcp: number
}

/** Everything on loopback, and gone with the cleanup. */
export async function waysRows(
  folder: string,
  served: Served,
  cleanup: Cleanup,
): Promise<{ rows: Row[]; ways: Ways }> {
  const owner = ownerOf(cleanup)
  const source = await tlsSource(owner, { mydomain: Buffer.alloc(0) })
  await rm(path.join(source.dir, 'mydomain.raw'))
  await symlink(served.image, path.join(source.dir, 'mydomain.raw'))
  source.authorize('standby1', ['mydomain'])
  const identity = await source.issue('standby1')

  const dir = sshFolder(owner)
  const quoted = (words: readonly string[]): string => words.map(word => `'${word}'`).join(' ')
  const cli = [process.execPath, path.join(ROOT, 'dist/server/cli.js')]
  const gate = [
    ...cli,
    '--config',
    path.join(source.dir, 'source.yaml'),
    'gate',
    '--client',
    'standby1',
  ]
  const script = `case $SSH_ORIGINAL_COMMAND in gate) exec ${quoted(served.gateCommand)};; *) exec ${quoted(gate)};; esac`
  const sshd = await startSshd(owner, dir, { allow: forcedCommand(dir, 'forced', script) })
  const free = await plainSsh(owner, dir)
  const names = [`[127.0.0.1]:${sshd.port} ${sshd.hostKey()}`, free.known]
  knowHosts(dir, ...names)

  const tcp = await tcpListener(served, cleanup)
  const nbdkit = await nbdkitTls(source.tls.folder, served.image, cleanup)
  const known = path.join(dir, 'known_hosts')
  const pem = (name: string): string => path.join(identity, `${name}.pem`)
  const local = `gate: local, gateCommand: ${JSON.stringify(served.gateCommand)}`
  const ways = {
    ssh: `transport: ssh, host: 127.0.0.1, ssh: { port: ${sshd.port}, identity: ${dir}/id, knownHosts: ${known} }`,
    tls: `transport: tls, host: localhost, port: ${source.port}, ${local}, tls: { ca: ${pem('ca-cert')}, cert: ${pem('client-cert')}, key: ${pem('client-key')} }`,
    tcp: `transport: tcp, host: 127.0.0.1, port: ${tcp}, ${local}`,
  }
  const rows: Row[] = []
  for (const [name, way] of Object.entries(ways)) {
    const store = path.join(folder, `${name}.store`)
    const config = path.join(folder, `${name}.yaml`)
    await writeFile(
      config,
      `store: ${store}\nsources: { far: { ${way} } }\ndomains: { mydomain: { source: far } }\n`,
    )
    rows.push(ourPull(name, `clone pull over ${name}`, folder, { ...served, config, store }))
  }
  const copy = path.join(folder, 'copy.raw')
  const other = (name: string, title: string, command: string): Row => ({
    ...{ name, title, command, copy },
    run: signal => measure(['sh', '-ec', command, 'sh', served.image, copy], folder, signal),
    clear: () => rm(copy, { force: true }),
  })
  rows.push(
    other(
      'ssh-dd',
      'ssh HOST dd into a file, no checksum, not synced',
      `${free.command} 127.0.0.1 dd if="$1" bs=1M status=none >"$2"`,
    ),
    other(
      'nbdcopy-tls',
      'nbdcopy over TLS from nbdkit, no checksum, not synced',
      `nbdcopy --connections=1 'nbds://localhost:${nbdkit}?tls-certificates=${identity}' "$2"`,
    ),
    ourPull('limit', `clone pull --limit-rate ${LIMIT}`, folder, served, ['--limit-rate', LIMIT]),
  )
  const { port } = sshd
  return { rows, ways: { ssh: { port, hostKey: sshd.hostKey(), dir, known: names }, tcp } }
}

/** An sshd as a person logs in to it. @returns the ssh command without the host, and its line of known_hosts */
export async function plainSsh(
  owner: Owner,
  dir: string,
): Promise<{ command: string; known: string }> {
  const person = path.join(dir, 'person')
  makeKey(person)
  const sshd = await startSshd(owner, dir, { allow: 'restrict', key: person }, 'free')
  return {
    command: `ssh -q -p ${sshd.port} -i ${person} -o IdentitiesOnly=yes -o UserKnownHostsFile=${dir}/known_hosts`,
    known: `[127.0.0.1]:${sshd.port} ${sshd.hostKey()}`,
  }
}

/** What the tests' servers want for their clean-up. */
export function ownerOf(cleanup: Cleanup): Owner {
  return {
    teardown(step) {
      cleanup.defer(async () => {
        await step()
      })
    },
  }
}

/** nbd-server by tcp, one process per connection, as the product runs it. @returns the port */
async function tcpListener({ serverConfig }: Served, cleanup: Cleanup): Promise<number> {
  const listener = createServer({ pauseOnConnect: true }, connection => {
    spawn('setpriv', ['--pdeathsig', 'KILL', 'nbd-server', '-d', '-C', serverConfig], {
      stdio: [connection, 'ignore', 'ignore'],
      env: childEnvironment(),
    })
    connection.destroy()
  })
  await new Promise<void>(resolve => listener.listen(0, '127.0.0.1', resolve))
  cleanup.defer(() => void listener.close())
  return (listener.address() as AddressInfo).port
}

/** @returns the port */
async function nbdkitTls(certificates: string, image: string, cleanup: Cleanup): Promise<number> {
  const probe = createServer()
  await new Promise<void>(resolve => probe.listen(0, '127.0.0.1', resolve))
  const { port } = probe.address() as AddressInfo
  await new Promise(resolve => probe.close(resolve))
  const args = ['-f', '-r', '-i', '127.0.0.1', '-p', String(port), '--tls=require']
  const server = spawn('nbdkit', [...args, `--tls-certificates=${certificates}`, 'file', image], {
    stdio: 'ignore',
    env: childEnvironment(),
  })
  cleanup.defer(() => void server.kill('SIGKILL'))
  return port
}
