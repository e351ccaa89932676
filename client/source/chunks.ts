// A session for a few chunks: opens it, hands over a connection per disk, lets it go, and waits for the merge.

import { setMaxListeners } from 'node:events'
import { Cleanup } from '../../shared/cleanup.ts'
import type { NbdConnection } from '../../shared/nbd/client.ts'
import type { CloneConfig } from '../config/effective.ts'
import { checkBinding } from '../store/guard.ts'
import type { Layout } from '../store/layout.ts'
import type { State } from '../store/state.ts'
import { openGate } from './gate.ts'
import { mergeOutcome } from './release.ts'
import { checkSession, connectOrExplain, explainLoss, greet } from './session.ts'

/** How long a connection may take to end that has nothing to give any more. */
const GOODBYE_MS = 5_000

/** What the source has of the disks asked for: a connection, or why there is none. */
export type SourceDisks = ReadonlyMap<string, NbdConnection | string>

export interface SessionEnds {
  readonly signal: AbortSignal
  /** Called once when the merge takes long. */
  readonly onLong: () => void
}

/**
 * Freezes the domain, runs `work`, releases the session. When the source has none of the disks, no session is opened and
 * `work` is told why.
 * @returns how the source ended; undefined when there was no session
 * @throws Failure as a pull does; MERGE_FAILED also when all work was done
 */
export async function withSession(
  clone: CloneConfig,
  layout: Layout,
  state: State,
  targets: readonly string[],
  { signal: stopped, onLong }: SessionEnds,
  work: (disks: SourceDisks, signal: AbortSignal) => Promise<void>,
): Promise<'merged' | 'kept' | undefined> {
  await using cleanup = new Cleanup()
  const over = new AbortController()
  const signal = AbortSignal.any([stopped, over.signal])
  setMaxListeners(0, signal)
  const gate = await openGate(clone.source, signal)
  cleanup.defer(() => gate[Symbol.asyncDispose]())
  const { hostId } = await greet(gate, clone, state, signal)
  const described = await gate.call('describe', { domain: clone.domain }, { signal })
  checkBinding(layout, state.bound, { hostId, domainUuid: described.uuid }, false)

  const disks = new Map<string, NbdConnection | string>()
  const there: string[] = []
  for (const target of targets) {
    const disk = described.disks.find(one => one.target === target)
    if (disk?.exported) there.push(target)
    else disks.set(target, disk?.reason ?? `domain ${described.domain} has no such disk any more`)
  }
  if (there.length === 0) {
    await work(disks, signal)
    return undefined
  }

  const open = { domain: clone.domain, want: {} }
  const { token } = await gate.call('session.open', open, { signal })
  // A session that came to nothing is let go, so that the source merges at once and not when the lease lapses.
  const letGo = (): Promise<unknown> =>
    gate.call('session.release', { token }, { timeoutMs: 3_000 }).catch(() => undefined)
  const released = cleanup.defer(letGo)
  const onRetry = (): void => undefined
  const beginning = { gate, clone, token, signal, stopped, onRetry }
  const endLease = gate.keepLease({
    ...{ token, signal, onRetry },
    onLost: reason => over.abort(reason),
  })
  cleanup.defer(endLease)
  const connections = new Map<string, NbdConnection>()
  cleanup.defer(() => connections.forEach(connection => connection.destroy()))
  for (const target of there) connections.set(target, await connectOrExplain(beginning, target))
  const info = await gate.call('session.info', { token }, { signal })
  const others = info.disks.filter(({ target }) => !connections.has(target))
  const omitted = others.map(({ target }) => ({ target, reason: 'nothing is wanted of it' }))
  checkSession(clone, info, described.uuid, connections, omitted)

  for (const [target, connection] of connections) disks.set(target, connection)
  await work(disks, signal).catch((error: unknown) => {
    stopped.throwIfAborted()
    return explainLoss(gate, token, error, signal)
  })

  await Promise.all([...connections.values()].map(connection => connection.disconnect(GOODBYE_MS)))
  endLease()
  await gate.call('session.release', { token }, { signal: stopped })
  released()
  return await mergeOutcome(gate, token, stopped, onLong)
}
