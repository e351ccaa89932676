// One disk-only snapshot of all writable disks in one QEMU transaction.

import type { RunResult } from '../../shared/host/run.ts'
import type { Virsh } from './virsh.ts'

export interface OverlayPlan {
  readonly target: string
  /** Path of the overlay to be, or undefined for a disk that stays as it is. */
  readonly overlay: string | undefined
}

/** One `--diskspec` value; virsh wants commas doubled. */
function diskspec({ target, overlay }: OverlayPlan): string {
  if (overlay === undefined) return `${target},snapshot=no`
  return `${target},snapshot=external,driver=qcow2,file=${overlay.replaceAll(',', ',,')}`
}

/** argv of the snapshot: every disk is named, because libvirt snapshots the unnamed ones too. */
export function snapshotArguments(
  domain: string,
  name: string,
  disks: readonly OverlayPlan[],
): string[] {
  return [
    'snapshot-create-as',
    '--domain',
    domain,
    '--name',
    name,
    '--disk-only',
    '--atomic',
    '--no-metadata',
    ...disks.flatMap(disk => ['--diskspec', diskspec(disk)]),
  ]
}

/** Takes the snapshot. The result is a hint only: what happened is read from QEMU's graph. */
export function takeSnapshot(
  virsh: Virsh,
  domain: string,
  name: string,
  disks: readonly OverlayPlan[],
): Promise<RunResult> {
  return virsh.run(snapshotArguments(domain, name, disks), 60_000)
}
