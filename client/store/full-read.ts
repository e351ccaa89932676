// When all of a clone was last read back. Written beside its generations too, because prune takes each of them away.

import type { Sound } from './generation.ts'
import type { Layout } from './layout.ts'
import { recordVerified, verifiedOf } from './verified.ts'

/**
 * Records durably that every byte of a generation was read back and matched, for it and for its clone: most of its chunks
 * are those of the generations after it, so that its removal does not undo this. Only under the clone's lock.
 */
export async function recordFullRead(
  layout: Layout,
  { dir }: Pick<Sound, 'dir'>,
  at = new Date(),
): Promise<void> {
  await recordVerified(dir, at)
  await recordVerified(layout.dir, at)
}

/** When all of a clone was last read back; undefined when it never was, as far as is known. @param sound all of it */
export async function lastFullRead(
  layout: Layout,
  sound: readonly Pick<Sound, 'dir' | 'generation'>[],
): Promise<Date | undefined> {
  const [first] = sound
  const places = first ? [{ ...first, dir: layout.dir }, ...sound] : []
  const verified = await Promise.all(places.map(verifiedOf))
  const times = verified.flatMap(({ fullAt }) => (fullAt === undefined ? [] : [Date.parse(fullAt)]))
  return times.length === 0 ? undefined : new Date(Math.max(...times))
}
