// Whether the host that answers is the one that was meant: its key against known_hosts or the pinned fingerprint.

import { createHash } from 'node:crypto'
import { Failure } from '../../../shared/failures.ts'
import type { KnownKey } from './known-hosts.ts'
import type { Hop } from './settings.ts'

/** What is offered when nothing is known yet, best first; of RSA only with SHA-2. */
const TYPES = [
  'ssh-ed25519',
  'ecdsa-sha2-nistp256',
  'ecdsa-sha2-nistp384',
  'ecdsa-sha2-nistp521',
  'ssh-rsa',
]
const RSA = ['rsa-sha2-512', 'rsa-sha2-256'] as const

export type HostKeyAlgorithm =
  | (typeof RSA)[number]
  | 'ssh-ed25519'
  | 'ecdsa-sha2-nistp256'
  | 'ecdsa-sha2-nistp384'
  | 'ecdsa-sha2-nistp521'

/** A host's key as it shows it. */
export interface ShownKey {
  readonly type: string
  /** Base64 of its wire form. */
  readonly key: string
}

/** A key in SSH's wire form, which begins with its type. @throws Failure UNSAFE */
export function shownKey(blob: Buffer): ShownKey {
  const length = blob.length < 4 ? Infinity : blob.readUInt32BE(0)
  const type = length < 100 ? blob.toString('latin1', 4, 4 + length) : ''
  if (!/^[a-z][a-z0-9@.-]+$/.test(type))
    throw new Failure('UNSAFE', 'the host shows a key that is none')
  return { type, key: blob.toString('base64') }
}

/** As `ssh-keygen -l` prints it: `SHA256:...`. */
export function fingerprint({ key }: Pick<ShownKey, 'key'>): string {
  const digest = createHash('sha256').update(Buffer.from(key, 'base64')).digest('base64')
  return `SHA256:${digest.replace(/=+$/, '')}`
}

/**
 * The algorithms to ask for: first those of keys that will do, or a host known by one key could show another and look like
 * a stranger.
 */
export function hostKeyAlgorithms(
  { pinned }: Pick<Hop, 'pinned'>,
  known: readonly KnownKey[],
): HostKeyAlgorithm[] {
  const willDo = known.filter(
    one => one.marker === undefined && (pinned === undefined || fingerprint(one) === pinned),
  )
  const types = new Set(willDo.map(({ type }) => type))
  const ordered = [
    ...TYPES.filter(type => types.has(type)),
    ...TYPES.filter(type => !types.has(type)),
  ]
  return ordered.flatMap(type => (type === 'ssh-rsa' ? [...RSA] : [type as HostKeyAlgorithm]))
}

/**
 * Whether to go on with a host that shows this key.
 * @returns `known`, or `new` when nobody knows the host yet, which is for the caller to refuse or accept
 * @throws Failure UNSAFE when it is revoked, or another one than is known or pinned
 */
export function judgeHostKey(
  hop: Hop,
  known: readonly KnownKey[],
  shown: ShownKey,
): 'known' | 'new' {
  const isShown = ({ key }: KnownKey): boolean => key === shown.key
  const revoked = known.find(one => one.marker === 'revoked' && isShown(one))
  if (revoked)
    throw new Failure(
      'UNSAFE',
      `${hop.name} shows a host key that is revoked (${place(revoked)}): ${named(shown)}`,
      {
        remedy:
          'do not connect: whoever has that key may pose as the host; give the host a new key',
      },
    )
  if (hop.pinned !== undefined) {
    if (hop.pinned === fingerprint(shown)) return 'known'
    throw new Failure(
      'UNSAFE',
      `${hop.name} shows another host key than the one pinned in standby.yaml: ${named(shown)}, pinned is ${hop.pinned}`,
      {
        remedy: `somebody may be in between; on the source compare with: ssh-keygen -lf /etc/ssh/${fileOf(shown.type)}`,
      },
    )
  }
  const plain = known.filter(({ marker }) => marker === undefined)
  if (plain.some(isShown)) return 'known'
  const [other] = [...plain.filter(({ type }) => type === shown.type), ...plain]
  if (other)
    throw new Failure(
      'UNSAFE',
      `the host key of ${hop.name} has changed: it shows ${named(shown)}, known is ${named(other)} (${place(other)})`,
      {
        remedy: `somebody may be in between; only if the host was really given a new key: ssh-keygen -R '${hop.hostKeyName}' -f ${other.file}, then pull once with --accept-new-host-key`,
      },
    )
  return 'new'
}

/** Why a host that nobody knows is refused, and how it becomes known. */
export function unknownHost(
  hop: Hop,
  known: readonly KnownKey[],
  shown: ShownKey,
  sourceName: string,
): Failure {
  const authority = known.find(({ marker }) => marker === 'authority')
  const trusts = authority
    ? `; that ${place(authority)} trusts a certificate authority for it does not help, because host certificates are not understood here`
    : ''
  const pin = hop.pinnable
    ? `, or set sources.${sourceName}.ssh.hostKey: '${fingerprint(shown)}' in standby.yaml`
    : ''
  return new Failure(
    'UNSAFE',
    `the host key of ${hop.name} is not known: ${named(shown)}${trusts}`,
    {
      remedy: `on that host run: ssh-keygen -lf /etc/ssh/${fileOf(shown.type)}; if it prints the same, run again with --accept-new-host-key${pin}`,
    },
  )
}

/** e.g. `ED25519 SHA256:...`. */
export function named(key: ShownKey): string {
  return `${nameOf(key.type)} ${fingerprint(key)}`
}

function nameOf(type: string): string {
  return type.startsWith('ecdsa-') ? 'ECDSA' : type.replace(/^ssh-/, '').toUpperCase()
}

function fileOf(type: string): string {
  return `ssh_host_${nameOf(type).toLowerCase()}_key.pub`
}

function place({ file, line }: KnownKey): string {
  return `${file}:${line}`
}
