// Whether the files at the paths of the bases are those that QEMU has open: a file that was replaced under a running domain is
// another one to everybody who opens it now.

import { Failure } from '../../shared/failures.ts'
import { openedBy } from '../../shared/host/openers.ts'
import { findQemu } from '../libvirt/qemu-process.ts'
import type { SessionDiskRecord } from './journal.ts'

/**
 * What lies at a base's path must be what QEMU writes to. Who may not look into QEMU's process is believed by path.
 * @throws Failure NEEDS_OPERATOR
 */
export async function checkOpened(
  uuid: string,
  domain: string,
  disks: readonly SessionDiskRecord[],
): Promise<void> {
  const qemu = await findQemu(uuid)
  const opened =
    qemu &&
    (await openedBy(
      qemu.pid,
      disks.map(({ base }) => base),
    ))
  const replaced = opened && disks.find(({ base }) => !opened.has(base))
  if (replaced)
    throw new Failure(
      'NEEDS_OPERATOR',
      `disk ${replaced.target} of ${domain}: ${replaced.base} is not the file that QEMU writes to, it was replaced while the domain runs`,
      {
        remedy: `do not stop the domain before its disk is saved: virsh blockcopy ${domain} ${replaced.target} NEW-FILE --wait --pivot --transient-job`,
      },
    )
}
