// The folder `tls` beside source.yaml: the authority, the server's certificate, the list of revoked certificates, and the
// index of all that were issued.

import { access, mkdir, readFile, rename, rm } from 'node:fs/promises'
import path from 'node:path'
import { z } from 'zod'
import { Failure } from '../../shared/failures.ts'
import { fsyncPath, writeDurably } from '../../shared/host/durable.ts'
import { tryLock } from '../../shared/host/lock.ts'
import {
  makeCrl,
  readAuthority,
  type Authority,
  type Issued,
  type Pair,
  type Subject,
} from './certificates.ts'
import type { TlsFolder } from './paths.ts'

const entry = z.strictObject({
  serial: z.string().regex(/^[0-9a-f]{2,40}$/),
  kind: z.enum(['server', 'client']),
  /** Of a client its name, of a server its first host. */
  name: z.string(),
  notBefore: z.iso.datetime(),
  notAfter: z.iso.datetime(),
  revokedAt: z.iso.datetime().optional(),
})
const index = z.strictObject({ schema: z.literal(1), certificates: z.array(entry) })
/** What there is to do about an authority that ends: nothing renews it. */
export const NEW_AUTHORITY =
  'make a new one: move the folder tls away, clone-server tls init, and clone-server tls issue NAME for each client'

/** One certificate that was issued here. */
export type Entry = z.infer<typeof entry>

/** @throws Failure USAGE when there is something at the path */
export async function refuseExisting(folder: string, remedy: string): Promise<void> {
  const found = await access(folder).then(
    () => true,
    () => false,
  )
  if (found)
    throw new Failure('USAGE', `${folder} is there already: nothing is overwritten`, { remedy })
}

/**
 * Makes a folder (0700) with files (0600), all of it or nothing.
 * @throws Failure USAGE when it cannot be made
 */
export async function makeFolder(
  folder: string,
  files: Readonly<Record<string, string>>,
): Promise<void> {
  const beside = `${folder}.new`
  try {
    await rm(beside, { recursive: true, force: true })
    await mkdir(path.dirname(folder), { recursive: true })
    await mkdir(beside, { mode: 0o700 })
    for (const [name, content] of Object.entries(files))
      await writeDurably(path.join(beside, name), content, 0o600)
    await rename(beside, folder)
    await fsyncPath(path.dirname(folder))
  } catch (error) {
    await rm(beside, { recursive: true, force: true }).catch(() => undefined)
    const { code } = error as NodeJS.ErrnoException
    throw new Failure('USAGE', `cannot make ${folder}: ${code ?? String(error)}`, { cause: error })
  }
}

/** Runs alone among all that change the folder. @throws Failure LOCKED */
export async function alone<T>(tls: TlsFolder, work: () => Promise<T>): Promise<T> {
  const free = tryLock(path.join(tls.folder, 'lock'), `pid ${process.pid}`)
  if (typeof free !== 'function')
    throw new Failure(
      'LOCKED',
      `${tls.folder} is being changed by another command (${free.heldBy})`,
    )
  try {
    return await work()
  } finally {
    free()
  }
}

/** @throws Failure USAGE when there is none, or it cannot be read */
export async function openAuthority(tls: TlsFolder): Promise<Authority> {
  return readAuthority({ cert: await read(tls.caCert), key: await read(tls.caKey) })
}

/**
 * The authority, to issue something by it.
 * @throws Failure USAGE as `openAuthority`, and when the authority's own certificate is over
 */
export async function openIssuer(tls: TlsFolder): Promise<Authority> {
  const authority = await openAuthority(tls)
  const { notAfter } = authority.certificate
  if (notAfter.getTime() > Date.now()) return authority
  throw new Failure('USAGE', `${tls.caCert} is over since ${dayOf(notAfter)}: nobody believes it`, {
    remedy: NEW_AUTHORITY,
  })
}

/** All certificates that were issued, oldest first. @throws Failure USAGE */
export async function readIndex(tls: TlsFolder): Promise<Entry[]> {
  const text = await read(tls.index)
  try {
    return index.parse(JSON.parse(text)).certificates
  } catch (cause) {
    throw new Failure('USAGE', `${tls.index} is not an index of certificates`, { cause })
  }
}

/** The same; undefined when there is no index, as of a source that brings its own certificates. */
export async function readIndexIfAny(tls: TlsFolder): Promise<Entry[] | undefined> {
  return readIndex(tls).catch((error: unknown) => {
    const { cause } = error as { readonly cause?: { readonly code?: unknown } }
    if (cause?.code === 'ENOENT') return undefined
    throw error
  })
}

export function indexText(certificates: readonly Entry[]): string {
  return `${JSON.stringify({ schema: 1, certificates }, null, 2)}\n`
}

export function dayOf(date: Date): string {
  return date.toISOString().slice(0, 10)
}

export function entryOf(issued: Issued, subject: Subject): Entry {
  const { serial, notBefore, notAfter } = issued
  return {
    serial,
    kind: subject.kind,
    name: subject.kind === 'client' ? subject.name : (subject.hosts[0] ?? ''),
    notBefore: notBefore.toISOString(),
    notAfter: notAfter.toISOString(),
  }
}

/** Records a certificate; before anybody has it, so that every one can be revoked. */
export async function record(tls: TlsFolder, added: Entry): Promise<void> {
  await writeDurably(tls.index, indexText([...(await readIndex(tls)), added]), 0o600)
}

/**
 * Revokes every certificate of a client. What is told twice is done twice: the list is written anew from the index, also
 * when an earlier run was cut short between the two.
 * @returns how many were valid until now
 */
export async function revokeClient(tls: TlsFolder, name: string): Promise<number> {
  const revokedAt = new Date().toISOString()
  const before = await readIndex(tls)
  const isHit = isUnrevokedOf(name)
  const after = before.map(one => (isHit(one) ? { ...one, revokedAt } : one))
  // Without the authority's key there is no new list, and an index that says otherwise would be a lie.
  const crl = await crlOf(await openAuthority(tls), after)
  await writeDurably(tls.index, indexText(after), 0o600)
  await writeDurably(tls.crl, crl, 0o600)
  return before.filter(isHit).length
}

/**
 * The same for who is revoked altogether: nothing is done where there is nothing to revoke.
 * @returns how many; undefined when this source has issued none at all
 */
export async function revokeClientIfAny(tls: TlsFolder, name: string): Promise<number | undefined> {
  const known = await readIndexIfAny(tls)
  if (!known?.some(isUnrevokedOf(name))) return known && 0
  return alone(tls, () => revokeClient(tls, name))
}

function isUnrevokedOf(name: string): (one: Entry) => boolean {
  return one => one.kind === 'client' && one.name === name && one.revokedAt === undefined
}

export function crlOf(authority: Authority, certificates: readonly Entry[]): Promise<string> {
  const revoked = certificates.flatMap(({ serial, revokedAt }) =>
    revokedAt === undefined ? [] : [{ serial, at: new Date(revokedAt) }],
  )
  return makeCrl(authority, revoked)
}

/** The server's certificate and key; the key first, because a certificate without its key is of no use. */
export async function replaceServer(tls: TlsFolder, { cert, key }: Pair): Promise<void> {
  await writeDurably(tls.serverKey, key, 0o600)
  await writeDurably(tls.serverCert, cert, 0o600)
}

async function read(file: string): Promise<string> {
  return readFile(file, 'utf8').catch((error: unknown) => {
    const { code } = error as NodeJS.ErrnoException
    const reason = code === 'ENOENT' ? 'no such file' : String(code)
    throw new Failure('USAGE', `cannot read ${file}: ${reason}`, {
      cause: error,
      remedy: code === 'ENOENT' ? 'clone-server tls init' : undefined,
    })
  })
}
