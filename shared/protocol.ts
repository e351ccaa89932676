// Which version of the gate's words two hosts speak with each other: each says its range, and the highest in both is used.

import { Failure } from './failures.ts'

/** What this version speaks. A version is raised only when the other side must change; what is added needs a feature's name. */
export const PROTOCOLS = { min: 1, max: 1 } as const

/** One host's range, and its version of nbd-clone. */
export interface Speaks {
  readonly min: number
  readonly max: number
  readonly version: string
}

/**
 * The highest version that both speak. Pure.
 * @throws Failure SOURCE_REFUSED naming both versions, and on which host to install a newer one
 */
export function agree(source: Speaks, standby: Speaks): number {
  const highest = Math.min(source.max, standby.max)
  if (highest >= Math.max(source.min, standby.min)) return highest
  const say = ({ min, max, version }: Speaks): string =>
    `${min === max ? min : `${min} to ${max}`} (nbd-clone ${version})`
  throw new Failure(
    'SOURCE_REFUSED',
    `no common gate protocol: the source speaks ${say(source)}, the standby ${say(standby)}`,
    { remedy: `update nbd-clone on the ${source.max < standby.min ? 'source' : 'standby'}` },
  )
}
