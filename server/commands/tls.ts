// tls init, issue, renew, revoke and list: the certificates of a TLS listener, made here, and what is said of them.

import { hostname } from 'node:os'
import path from 'node:path'
import Table from 'cli-table3'
import { Failure, toFailure } from '../../shared/failures.ts'
import { checkClient } from '../clients/rights.ts'
import { sourcePaths } from '../config/paths.ts'
import { readSourceConfig } from '../config/schema.ts'
import { endClient, renderEnded, type Ended } from '../serve/end-client.ts'
import { endOf, issue, makeAuthority, readAuthority, type Authority } from '../tls/certificates.ts'
import type { Subject } from '../tls/certificates.ts'
import {
  alone,
  crlOf,
  dayOf,
  entryOf,
  indexText,
  makeFolder,
  openIssuer,
  readIndex,
  record,
  refuseExisting,
  replaceServer,
  revokeClient,
  type Entry,
} from '../tls/folder.ts'
import { tlsFolder } from '../tls/paths.ts'

/** What a command did or would do: for `--json`, and for people. */
export interface Told {
  readonly json: object
  readonly text: string
}

export interface ServerArguments {
  readonly config: string
  /** Names and addresses, separated by commas. */
  readonly host: string | undefined
  readonly days: number
  readonly 'dry-run': boolean
}

/** X.520 allows a common name no more. */
const LONGEST_NAME = 64
const HOST = /^[A-Za-z0-9:][A-Za-z0-9.:-]{0,252}$/

/** Makes the authority, the server's certificate and an empty list of revoked ones. @throws Failure USAGE */
export async function tlsInit(args: ServerArguments): Promise<Told> {
  const tls = tlsFolder(args.config)
  const subject = serverSubject(args.host)
  checkDays(args.days)
  await refuseExisting(
    tls.folder,
    'clone-server tls renew makes a new certificate for the server; tls issue NAME one for a client',
  )
  if (!args['dry-run']) {
    const ca = await makeAuthority(`nbd-clone ${hostname()}`.slice(0, LONGEST_NAME), args.days)
    const authority = await readAuthority(ca)
    const server = await issue(authority, subject, args.days)
    await makeFolder(tls.folder, {
      [path.basename(tls.caCert)]: ca.cert,
      [path.basename(tls.caKey)]: ca.key,
      [path.basename(tls.crl)]: await crlOf(authority, []),
      [path.basename(tls.index)]: indexText([entryOf(server, subject)]),
      [path.basename(tls.serverCert)]: server.cert,
      [path.basename(tls.serverKey)]: server.key,
    })
  }
  return {
    json: { folder: tls.folder, hosts: subject.hosts, dryRun: args['dry-run'] },
    text: [
      `${tls.folder}: ${would(args)}an authority, and a certificate for ${subject.hosts.join(', ')}`,
      '  next: clone-server tls issue NAME for each client, and listen: { tls: { host: ADDRESS } } in source.yaml',
    ].join('\n'),
  }
}

/** Makes a new certificate for the server; connections made from now on get it. @throws Failure USAGE, LOCKED */
export async function tlsRenew(args: ServerArguments): Promise<Told> {
  const tls = tlsFolder(args.config)
  const subject = serverSubject(args.host)
  checkDays(args.days)
  const authority = await openIssuer(tls)
  if (!args['dry-run'])
    await alone(tls, async () => {
      const server = await issue(authority, subject, args.days)
      await record(tls, entryOf(server, subject))
      await replaceServer(tls, server)
    })
  const { validUntil, capped } = untilWhen(authority, args.days)
  return {
    json: { folder: tls.folder, hosts: subject.hosts, validUntil, dryRun: args['dry-run'] },
    text: [
      `${tls.serverCert}: ${would(args)}a new certificate for ${subject.hosts.join(', ')}`,
      ...capped,
    ].join('\n'),
  }
}

export interface IssueArguments {
  readonly config: string
  readonly name: string
  readonly out: string | undefined
  readonly days: number
  readonly 'dry-run': boolean
}

/** Makes a folder with a client's key and certificate. @throws Failure USAGE, LOCKED */
export async function tlsIssue(args: IssueArguments): Promise<Told> {
  const tls = tlsFolder(args.config)
  const subject: Subject = { kind: 'client', name: clientName(args.name) }
  const out = path.resolve(args.out ?? `${args.name}-tls`)
  checkDays(args.days)
  const authority = await openIssuer(tls)
  await refuseExisting(out, 'name another folder with --out')
  if (!args['dry-run'])
    await alone(tls, async () => {
      const made = await issue(authority, subject, args.days)
      await record(tls, entryOf(made, subject))
      await makeFolder(out, {
        'ca-cert.pem': `${authority.certificate.toString('pem')}\n`,
        'client-cert.pem': made.cert,
        'client-key.pem': made.key,
      })
    })
  const { validUntil, capped } = untilWhen(authority, args.days)
  return {
    json: { client: args.name, folder: out, validUntil, dryRun: args['dry-run'] },
    text: [
      `${out}: ${would(args)}key and certificate of ${args.name}`,
      ...capped,
      `  next: move the folder to ${args.name}, as /etc/nbd-clone/tls, and leave no copy here`,
    ].join('\n'),
  }
}

/**
 * Revokes all certificates of a client, and ends what it has open.
 * @throws Failure USAGE, LOCKED; and as the configuration's, or SOURCE_UNREACHABLE when serve does not answer: then the
 * certificates are revoked all the same
 */
export async function tlsRevoke(args: {
  readonly config: string
  readonly name: string
  readonly 'dry-run': boolean
}): Promise<Told> {
  const tls = tlsFolder(args.config)
  const name = clientName(args.name)
  const known = (await readIndex(tls)).filter(one => one.kind === 'client' && one.name === name)
  if (known.length === 0)
    throw new Failure('USAGE', `no certificate was issued for ${name}`, {
      remedy: 'clone-server tls list',
    })
  if (args['dry-run']) {
    const revoked = known.filter(one => one.revokedAt === undefined).length
    return {
      json: { client: name, revoked, dryRun: true },
      text: `${name}: would revoke ${revoked} certificate(s), and end what it has open`,
    }
  }
  const revoked = await alone(tls, () => revokeClient(tls, name))
  const ended = await endRevoked(args.config, name)
  return {
    json: { client: name, revoked, ended, dryRun: false },
    text: [`${name}: ${revoked} certificate(s) revoked`, `  ${renderEnded(ended)}`].join('\n'),
  }
}

/** After the list is written, so that what is ended cannot come back. */
async function endRevoked(config: string, name: string): Promise<Ended> {
  try {
    const { serveSocket } = sourcePaths(readSourceConfig(config), config)
    return await endClient(serveSocket, name, 'certificates')
  } catch (error) {
    const { code, message, remedy } = toFailure(error)
    const done = `the certificates of ${name} are revoked, but what it has open may go on`
    throw new Failure(code, `${done}: ${message}`, { cause: error, remedy })
  }
}

/** Every certificate that was issued, and what became of it. @throws Failure USAGE */
export async function tlsList(args: { readonly config: string }): Promise<Told> {
  const certificates = (await readIndex(tlsFolder(args.config))).map(one => ({
    ...one,
    state: stateOf(one, Date.now()),
  }))
  const table = new Table({
    head: ['NAME', 'FOR', 'STATE', 'VALID UNTIL', 'SERIAL'],
    chars: NO_LINES,
    style: { head: [], border: [], 'padding-left': 0, 'padding-right': 0, compact: true },
  })
  for (const { name, kind, state, notAfter, serial } of certificates)
    table.push([name, kind, state, notAfter.slice(0, 10), serial])
  const lines = table.toString().split('\n')
  return { json: { certificates }, text: lines.map(line => line.trimEnd()).join('\n') }
}

const NO_LINES = {
  ...{ top: '', 'top-mid': '', 'top-left': '', 'top-right': '' },
  ...{ bottom: '', 'bottom-mid': '', 'bottom-left': '', 'bottom-right': '' },
  ...{ mid: '', 'left-mid': '', 'mid-mid': '', 'right-mid': '', left: '', right: '', middle: '  ' },
}

function stateOf({ revokedAt, notAfter }: Entry, now: number): 'valid' | 'expired' | 'revoked' {
  if (revokedAt !== undefined) return 'revoked'
  return Date.parse(notAfter) < now ? 'expired' : 'valid'
}

/** When a certificate that is made now ends; a line for people when that is sooner than they asked for. */
function untilWhen(
  authority: Authority,
  days: number,
): { validUntil: string; capped: readonly string[] } {
  const { end, isCapped } = endOf(authority, days)
  return {
    validUntil: dayOf(end),
    capped: isCapped ? [`  valid until ${dayOf(end)} only, when its authority ends`] : [],
  }
}

function would(args: { readonly 'dry-run': boolean }): string {
  return args['dry-run'] ? 'would make ' : ''
}

function serverSubject(host: string | undefined): Subject & { kind: 'server' } {
  const hosts = host === undefined ? [hostname(), 'localhost'] : host.split(',')
  for (const one of hosts)
    if (!HOST.test(one))
      throw new Failure('USAGE', `--host ${JSON.stringify(one)}: not a host name or address`)
  if ((hosts[0] ?? '').length > LONGEST_NAME)
    throw new Failure('USAGE', `--host: the first name may have ${LONGEST_NAME} characters`)
  return { kind: 'server', hosts }
}

function clientName(name: string): string {
  if (name.length > LONGEST_NAME)
    throw new Failure('USAGE', `the name in a certificate has at most ${LONGEST_NAME} characters`)
  return checkClient(name)
}

function checkDays(days: number): void {
  if (!Number.isInteger(days) || days < 1 || days > 36_500)
    throw new Failure('USAGE', '--days is a whole number from 1 to 36500')
}
