// The gate's `digests`: who may ask for how much of which disk, and that the answer is of the frozen base.

import { chunkCount } from '../../shared/chunks.ts'
import { Failure } from '../../shared/failures.ts'
import type { GateParams } from '../../shared/gate.ts'
import type { Lease } from '../session/lease.ts'
import { frozenSession } from '../session/session.ts'

/** What a lease may have asked for at once, for each disk of its session; our client asks for two. */
const AT_ONCE_PER_DISK = 4

/**
 * @param gone aborts when the client does
 * @throws Failure SOURCE_REFUSED unless the lease's session is frozen until all is hashed; USAGE for chunks that the disk
 * does not have; TRANSFER when it cannot be read
 */
export async function frozenDigests(
  lease: Lease,
  { target, chunk, count }: Omit<GateParams<'digests'>, 'token'>,
  gone: AbortSignal,
): Promise<string[]> {
  const { hasher, frozen } = frozenSession(lease)
  const disk = frozen.disks.find(one => one.target === target)
  if (!disk) throw new Failure('SOURCE_REFUSED', `the session has no disk ${target}`)
  const { base, size } = disk
  const chunks = chunkCount(size)
  if (chunk + count > chunks)
    throw new Failure('USAGE', `disk ${target} has ${chunks} chunks, not ${chunk + count}`)
  if (lease.hashing >= AT_ONCE_PER_DISK * frozen.disks.length)
    throw new Failure('SOURCE_REFUSED', `${lease.hashing} digests are asked for already`)
  lease.hashing++
  const digests = hasher.digests({ base, size, chunk, count }, gone)
  await digests.catch(() => undefined)
  lease.hashing--
  // A session that is over says more than what became of the process, and takes back what was hashed.
  frozenSession(lease)
  return digests
}
