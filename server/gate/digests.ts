// The gate's `digests`: who may ask for how much of which disk, and that the answer is of the frozen base.

import { CHUNK_SIZE, chunkCount, chunkLength } from '../../shared/chunks.ts'
import { Failure } from '../../shared/failures.ts'
import type { GateParams } from '../../shared/gate.ts'
import { zeroDigest } from '../../shared/zeros.ts'
import type { Lease } from '../session/lease.ts'
import { allocationOf, frozenSession, type Session } from '../session/session.ts'

/** What a lease may have asked for at once, for each disk of its session; our client asks for two. */
const AT_ONCE_PER_DISK = 4

/**
 * @param gone aborts when the client does
 * @throws Failure SOURCE_REFUSED unless the lease's session is frozen until all is hashed; USAGE for chunks that the disk
 * does not have; TRANSFER when it cannot be read
 */
export async function frozenDigests(
  lease: Lease,
  { target, chunk, count, whole = false }: Omit<GateParams<'digests'>, 'token'>,
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
  const session = frozenSession(lease)
  const hash = (asked: { chunk: number; count: number }): Promise<string[]> =>
    hasher.digests({ base, size, ...asked }, gone)
  const digests = whole ? hash({ chunk, count }) : digestsOf(session, target, chunk, count, hash)
  await digests.catch(() => undefined)
  lease.hashing--
  // A session that is over says more than what became of the process, and takes back what was hashed.
  frozenSession(lease)
  return digests
}

/** Holes are not read: what is in them is known. @param hash hashes chunks in a row */
async function digestsOf(
  session: Session,
  target: string,
  chunk: number,
  count: number,
  hash: (asked: { chunk: number; count: number }) => Promise<string[]>,
): Promise<string[]> {
  const data = await allocationOf(session, target).catch(() => undefined)
  if (!data) return hash({ chunk, count })
  const digests: string[] = []
  const end = chunk + count
  for (let at = chunk; at < end;) {
    const touched = (one: number): boolean =>
      data.touches(one * CHUNK_SIZE, chunkLength(data.size, one))
    const isHole = !touched(at)
    let next = at + 1
    while (next < end && isHole !== touched(next)) next++
    if (isHole) {
      session.described += (next - at) * CHUNK_SIZE
      for (; at < next; at++) digests.push(zeroDigest(chunkLength(data.size, at)))
    } else digests.push(...(await hash({ chunk: at, count: next - at })))
    at = next
  }
  return digests
}
