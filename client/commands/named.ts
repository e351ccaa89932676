// Which clones a command is about.

import { Failure } from '../../shared/failures.ts'
import { cloneConfig, type CloneConfig } from '../config/effective.ts'
import type { StandbyConfig } from '../config/schema.ts'
import { NO_USER } from '../source/user.ts'

/** The clones that a command names, or all of them. @param user who runs it. @throws Failure USAGE */
export function namedClones(
  config: StandbyConfig,
  names: readonly string[],
  all: boolean,
  user = NO_USER,
): CloneConfig[] {
  if (all && names.length > 0) throw new Failure('USAGE', 'name domains or give --all, not both')
  const wanted = all ? Object.keys(config.domains) : [...new Set(names)]
  if (wanted.length === 0) throw new Failure('USAGE', 'name a domain, or give --all')
  return wanted.map(name => cloneConfig(config, name, user))
}
