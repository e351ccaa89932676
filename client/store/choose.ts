// Which generation a person means: a recovery point's id, a seq, or none for the newest.

import { Failure } from '../../shared/failures.ts'
import type { Found, Sound } from './generation.ts'

/**
 * @param clone its name, for the messages. @param found oldest first. @param which the newest readable one when undefined
 * @throws Failure USAGE when there is none such; INTEGRITY when its generation.json is broken
 */
export function chooseGeneration(
  clone: string,
  found: readonly Found[],
  which: string | undefined,
): Sound {
  const match =
    which === undefined
      ? found.filter(one => one.generation).at(-1)
      : found.find(one => one.id === which || String(one.generation?.seq) === which)
  if (match?.generation) return match
  if (match) throw new Failure('INTEGRITY', `generation ${match.id} is broken: ${match.broken}`)
  throw new Failure(
    'USAGE',
    which === undefined ? `${clone} has no generation yet` : `${clone} has no generation ${which}`,
    { remedy: `see: clone list ${clone}` },
  )
}
