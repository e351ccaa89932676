// Why a login failed, for who has to do something about it.

import { Failure } from '../../../shared/failures.ts'
import { harmless } from '../harmless.ts'
import type { Keys } from './keys.ts'
import type { Hop } from './settings.ts'

/** How far a login came. */
export interface Tried {
  /** The keys that were offered. */
  readonly tried: readonly string[]
  /** Why the agent did not sign. */
  readonly unsigned: readonly string[]
  /** What the host said it takes. */
  readonly methods: readonly string[]
}

/** What makes a login possible. */
export const AUTHORIZE =
  'on the source run: clone-server authorize KEY.pub --client NAME --domains DOMAIN --install'

export function refused(
  hop: Hop,
  sourceName: string,
  { locked, notes }: Keys,
  { tried, unsigned, methods }: Tried,
  cause: Error,
): Failure {
  const more = [
    ...locked.map(
      file => `${file} is encrypted, the agent does not have it, and nobody gave its passphrase`,
    ),
    ...notes,
    ...unsigned,
    ...(methods.includes('publickey') ? [] : [`it wants ${harmless(methods.join(' or '))}`]),
  ]
  const why = [`tried: ${tried.join(', ') || 'no key, there is none'}`, ...more].join('; ')
  const remedy =
    locked.length > 0
      ? `ssh-add ${locked[0] ?? ''}, or use a key without a passphrase that is allowed nothing but the gate`
      : /too many/i.test(cause.message)
        ? `name the one key to use: sources.${sourceName}.ssh.identity, with ssh.options: ['IdentitiesOnly=yes']`
        : hop.pinnable
          ? AUTHORIZE
          : undefined
  return new Failure('SOURCE_REFUSED', `${at(hop)} refuses the login as ${hop.user}; ${why}`, {
    cause,
    remedy,
  })
}

export function unreachable(hop: Hop, why: string, cause?: Error): Failure {
  return new Failure('SOURCE_UNREACHABLE', `cannot connect to ${at(hop)} by ssh: ${why}`, { cause })
}

/** A host for messages. */
export function at({ name, host, port }: Hop): string {
  return `${name === host ? host : `${name} (${host})`} port ${port}`
}
