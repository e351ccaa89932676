// What a forced command lets its client ask for: the original command of the ssh session, which is the client's own text.

import { Failure } from '../../shared/failures.ts'
import { exportName, parseExportName } from '../../shared/names.ts'

export type GateCommand =
  { readonly kind: 'gate' } | { readonly kind: 'nbd'; readonly exportName: string }

/** The second is what standbys send whose gate is a child of ssh(1). */
const GATE: readonly string[] = ['gate', 'clone-server gate']
/** Of a command that is refused, for messages and logs. */
const SHOWN = 200

/**
 * @param original SSH_ORIGINAL_COMMAND: `gate`, `nbd DOMAIN/TARGET` or `nbd DOMAIN/TARGET@TOKEN`; undefined: none was given,
 * which is `gate`
 * @throws Failure SOURCE_REFUSED for everything else
 */
export function readGateCommand(original: string | undefined): GateCommand {
  if (original === undefined || GATE.includes(original)) return { kind: 'gate' }
  const named = original.startsWith('nbd ') ? parseExportName(original.slice(4)) : undefined
  if (named) return { kind: 'nbd', exportName: exportName(named.domain, named.target, named.token) }
  const shown = JSON.stringify(original.slice(0, SHOWN))
  throw new Failure('SOURCE_REFUSED', `the command ${shown} is not allowed with this key`, {
    remedy: 'this key is for clone pull: it may say gate, or nbd DOMAIN/TARGET, and nothing else',
  })
}
