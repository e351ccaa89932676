// What need not be read of a frozen disk, as the source tells: holes, and what did not change since a recovery point.

import { Failure } from '../../shared/failures.ts'
import type { GateResult } from '../../shared/gate.ts'
import { grainSet, type GrainSet } from '../../shared/grain-set.ts'
import type { Gate } from './gate.ts'

/** A disk as the session froze it. */
export interface FrozenDisk {
  readonly target: string
  /** Bytes. */
  readonly size: number
}

/** A set, or the source's reason why it has none. */
export type Told = GrainSet | { readonly reason: string }

export const isKnown = (told: Told | undefined): told is GrainSet =>
  told !== undefined && 'size' in told

/** Where a disk has data; all else reads as zeros. @throws as `gate.call`; Failure TRANSFER for an answer that cannot be */
export function dataOf(
  gate: Pick<Gate, 'call'>,
  token: string,
  disk: FrozenDisk,
  signal: AbortSignal,
): Promise<Told> {
  const { target } = disk
  return gather(disk, at => gate.call('allocation', { token, target, at }, { signal }))
}

/** What may have changed since a recovery point. @throws as dataOf */
export function changesSince(
  gate: Pick<Gate, 'call'>,
  token: string,
  disk: FrozenDisk,
  since: string,
  signal: AbortSignal,
): Promise<Told> {
  const { target } = disk
  return gather(disk, at => gate.call('changes', { token, target, since, at }, { signal }))
}

async function gather(
  { target, size }: FrozenDisk,
  ask: (at: number) => Promise<GateResult<'changes'>>,
): Promise<Told> {
  const set = grainSet(size)
  for (let at: number | null = 0; at !== null;) {
    const answer: GateResult<'changes'> = await ask(at)
    if (answer.size === undefined) return { reason: answer.reason ?? 'the source does not say why' }
    if (answer.size !== size) throw wrong(target, `${answer.size} bytes instead of ${size}`)
    for (const [offset, length] of answer.extents) {
      if (offset < at || offset + length > size)
        throw wrong(target, `${length} bytes at ${offset}, from ${at} on`)
      set.mark(offset, length)
    }
    if (answer.next !== null && answer.next <= at) throw wrong(target, 'pages that do not end')
    at = answer.next
  }
  return set
}

function wrong(target: string, what: string): Failure {
  return new Failure('TRANSFER', `the source describes disk ${target} wrongly: ${what}`, {
    remedy: 'run the same version of nbd-clone on both hosts',
  })
}
