// What every part of the source is given: its config, paths, libvirt and log.

import type { Log } from '../shared/log.ts'
import { sourcePaths, type Paths } from './config/paths.ts'
import type { SourceConfig } from './config/schema.ts'
import { createStarts, type Starts } from './session/starts.ts'
import { createVirsh, type Virsh } from './libvirt/virsh.ts'

export interface Source {
  readonly config: SourceConfig
  readonly paths: Paths
  readonly virsh: Virsh
  /** Who relies on a domain being off. */
  readonly starts: Starts
  readonly log: Log
}

/** @param file where the config was read */
export function createSource(config: SourceConfig, file: string, log: Log): Source {
  const virsh = createVirsh(config.libvirtUri)
  return { config, paths: sourcePaths(config, file), virsh, starts: createStarts(), log }
}
