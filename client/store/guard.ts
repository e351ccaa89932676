// May this clone be written? Its lock, its role, whose clone it is, and whether anybody uses its images.

import { Failure } from '../../shared/failures.ts'
import { tryLock } from '../../shared/host/lock.ts'
import { storeFailure } from '../copy/image.ts'
import { imagesOf, type Generation, type Sound } from './generation.ts'
import type { Layout } from './layout.ts'
import type { State } from './state.ts'
import { usersOf } from './users.ts'

/** Locks a clone for one command. @returns a function that frees it. @throws Failure LOCKED naming the holder; STANDBY_IO */
export function lockClone(layout: Layout, command: string): () => void {
  let lock: ReturnType<typeof tryLock>
  try {
    const since = new Date().toISOString()
    lock = tryLock(layout.lock, `process ${process.pid} (clone ${command}) since ${since}`)
  } catch (error) {
    throw storeFailure(layout.lock, error)
  }
  if (typeof lock === 'function') return lock
  throw new Failure('LOCKED', `${layout.dir} is locked by ${lock.heldBy}`, { cause: lock })
}

/** Who holds the lock that an error tells of, if that is a pull: the clone is being pulled already. */
export function pullingNow(error: unknown): string | undefined {
  if (!(error instanceof Failure) || error.code !== 'LOCKED') return undefined
  const { heldBy } = error.cause as { heldBy: string }
  return heldBy.includes(' (clone pull) ') ? heldBy : undefined
}

/** @throws Failure UNSAFE in any role but standby */
export function checkRole(layout: Layout, state: State): void {
  if (state.role !== 'standby')
    throw new Failure(
      'UNSAFE',
      `${layout.dir} has the role ${state.role}, so nothing is pulled into it`,
    )
}

/**
 * Whose clone this is. The newest generation knows it better than state.json, which a crash can leave a step behind: a publish
 * first uses up its seq, then makes the generation, and only then binds.
 * @param newest the one with the highest seq, damaged or not
 */
export function boundTo(
  state: Pick<State, 'bound' | 'lastSeq'>,
  newest: Pick<Generation, 'seq' | 'source'> | undefined,
): State['bound'] {
  if (!newest || newest.seq < state.lastSeq) return state.bound
  const { hostId, domainUuid } = newest.source
  return { hostId, domainUuid }
}

/** @throws Failure UNSAFE when the clone belongs to another host's domain, unless it is adopted */
export function checkBinding(
  layout: Layout,
  bound: State['bound'],
  source: { hostId: string; domainUuid: string },
  adopt: boolean,
): void {
  if (!bound || adopt) return
  if (bound.hostId === source.hostId && bound.domainUuid === source.domainUuid) return
  const other = bound.hostId === source.hostId ? 'another domain of' : 'another source than'
  throw new Failure(
    'UNSAFE',
    `${layout.dir} belongs to domain ${bound.domainUuid} of host ${bound.hostId}, ${other} host ${source.hostId} with domain ${source.domainUuid}`,
    {
      remedy:
        'check source and domain in standby.yaml; to give it to this domain: clone pull --adopt',
    },
  )
}

/**
 * Whoever can write into an image of any generation is in the way of everything; who only reads, of changing what he reads.
 * @param patched images that would be written in place or removed. @throws Failure UNSAFE naming the user
 */
export async function checkUnused(
  layout: Layout,
  sound: readonly Sound[],
  patched: readonly string[] = [],
): Promise<void> {
  const [first] = (await usersOf(sound.flatMap(imagesOf))).filter(({ writes }) => writes)
  const user = first ?? (patched.length === 0 ? undefined : (await usersOf(patched))[0])
  if (user)
    throw new Failure('UNSAFE', `the clone ${layout.dir} is in use: ${user.text}`, {
      remedy: 'end that use first; a copy of the images can be used freely: clone export',
    })
}

/** @throws Failure SOURCE_REFUSED when the source's session is of a recovery point that the clone has already */
export function checkIsNew(id: string, sound: readonly Sound[]): void {
  if (sound.some(one => one.id === id))
    throw new Failure(
      'SOURCE_REFUSED',
      `the source's session is ${id}, which this clone has already`,
      { remedy: 'pull again when that session is over; on the source run: clone-server status' },
    )
}
