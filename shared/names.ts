// Names that come from config or a peer, and the words built from them: export names and recovery point ids.

import { randomBytes } from 'node:crypto'
import { Failure } from './failures.ts'

const NAME = /^[A-Za-z0-9_][A-Za-z0-9_.+:@-]{0,99}$/
const RECOVERY_POINT = /^\d{8}T\d{6}Z-[0-9a-f]{4}$/

export const NAME_RULE =
  'a name is 1 to 100 of A-Z a-z 0-9 _ . + : @ - and starts with a letter, digit or _'

export function isName(text: string): boolean {
  return NAME.test(text)
}

/** Returns the name, or fails with the rule. @param what e.g. "domain", for the message */
export function checkName(what: string, text: string): string {
  if (!isName(text)) throw new Failure('USAGE', `${what} ${JSON.stringify(text)}: ${NAME_RULE}`)
  return text
}

/** A recovery point's id: UTC instant to the second, dash, 4 hex digits. */
export function newRecoveryPointId(instant: Date): string {
  const stamp = instant.toISOString().replace(/[-:]/g, '').replace(/\.\d+/, '')
  return `${stamp}-${randomBytes(2).toString('hex')}`
}

export function isRecoveryPointId(text: string): boolean {
  return RECOVERY_POINT.test(text)
}

/** The NBD export name of one disk: `DOMAIN/TARGET`, or `DOMAIN/TARGET@TOKEN` inside one session. */
export function exportName(domain: string, target: string, token?: string): string {
  return token === undefined ? `${domain}/${target}` : `${domain}/${target}@${token}`
}

const TOKEN_AT_END = /^(.+)@([0-9a-f]{32})$/

/** An export name taken apart; undefined when it is none. The token is 32 hex digits after the last @. */
export function parseExportName(
  text: string,
): { domain: string; target: string; token: string | undefined } | undefined {
  const [domain = '', rest = '', ...more] = text.split('/')
  const [, target = rest, token] = TOKEN_AT_END.exec(rest) ?? []
  if (more.length > 0 || !isName(domain) || !isName(target)) return undefined
  return { domain, target, token }
}
