// The commit of a pull: what is staged and sealed becomes the newest generation, each way of keeping them in its own manner.

import { isInPlace, type Bases } from './bases.ts'
import { repairCurrent } from './current.ts'
import { clearStaging } from './donor.ts'
import { publishInPlace, type Working } from './exchange.ts'
import { soundGenerations } from './generation.ts'
import type { Layout } from './layout.ts'
import { ownGeneration, type Ownership } from './ownership.ts'
import { publish } from './publish.ts'
import { writeState, type State } from './state.ts'

/**
 * Publishes staging/<id>, which is sealed. @param next the state afterwards. @returns the generation's folder
 * @throws Failure; the signal's reason, when nothing is published
 */
export async function commit(
  layout: Layout,
  id: string,
  { before, next }: { before: State; next: State },
  bases: Bases,
  ownership: Ownership,
  working: Working,
): Promise<string> {
  // A device that is held exclusively could not be opened so again.
  await bases[Symbol.asyncDispose]()
  working.signal.throwIfAborted()
  const inPlace = isInPlace(bases)
  const dir = inPlace
    ? await publishInPlace(layout, id, next, working, isWrittenAnew(bases))
    : await publishWhole(layout, id, before, next)
  // The records of what the images held are new files of an older generation.
  for (const { generation, method } of bases.of.values())
    if (method === 'in-place') await ownGeneration(generation.dir, ownership)
  await clearStaging(layout)
  return dir
}

const isWrittenAnew = ({ of }: Bases): boolean => [...of.values()].some(({ trusted }) => !trusted)

async function publishWhole(
  layout: Layout,
  id: string,
  before: State,
  next: State,
): Promise<string> {
  // The seq is used up first and the clone bound last: a crash may waste a seq, but never gives one twice, nor binds a clone
  // to a source that it has nothing of.
  await writeState(layout, { ...before, lastSeq: next.lastSeq })
  const dir = await publish(layout, id)
  await writeState(layout, next)
  await repairCurrent(layout, next, await soundGenerations(layout.dir))
  return dir
}
