// What every part of the source is given: its config, paths, libvirt and log.

import type { Log } from '../shared/log.ts'
import { sourcePaths, type Paths, type SourceConfig } from './config/schema.ts'
import { createVirsh, type Virsh } from './libvirt/virsh.ts'

export interface Source {
  readonly config: SourceConfig
  readonly paths: Paths
  readonly virsh: Virsh
  readonly log: Log
}

export function createSource(config: SourceConfig, log: Log): Source {
  return { config, paths: sourcePaths(config), virsh: createVirsh(config.libvirtUri), log }
}
