// A source for tests of tracking: it knows holes and changes, and can be made to lie about them.

import type { Test } from 'tap'
import { pino } from 'pino'
import { open, readFile, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { NOBODY } from '../../client/attempt.ts'
import { cloneConfig, loadConfig } from '../../client/config/effective.ts'
import { pull } from '../../client/pull.ts'
import type { Pulled, PullOptions } from '../../client/pulled.ts'
import { layoutOf } from '../../client/store/layout.ts'
import { readState, writeState, type State } from '../../client/store/state.ts'
import { CHUNK_SIZE } from '../../shared/chunks.ts'
import { GRAIN, grainSet, type GrainSet } from '../../shared/grain-set.ts'
import { fakeSource, type FakeSource } from './fake-source.ts'

const log = pino({ level: 'silent' })
/** A few chunks, and a last one that is none. */
export const SIZE = 6 * CHUNK_SIZE + 12_288

export interface Tracked extends FakeSource {
  /** What the source will say to have changed; undefined: what really did. */
  says: GrainSet | undefined
  /** Forget all that was recorded. */
  restart(): void
  /** Pulls, and checks that the clone is the disk. */
  pull(options?: Partial<PullOptions>): Promise<Pulled>
  state(): Promise<State>
  /** As after `--trust-tracking`. */
  trust(): Promise<void>
  write(offset: number, bytes: Buffer): Promise<void>
}

const differences = (before: Buffer, now: Buffer): GrainSet => {
  const set = grainSet(now.length)
  for (let at = 0; at < now.length; at += GRAIN) {
    const end = Math.min(at + GRAIN, now.length)
    if (!now.subarray(at, end).equals(before.subarray(at, end))) set.mark(at, end - at)
  }
  return set
}

/** @param settings of the clone, instead of the fake's own */
export async function tracked(
  t: Test,
  content: Buffer,
  settings: Readonly<Record<string, string>> = {},
): Promise<Tracked> {
  const source = await fakeSource({ vda: content })
  t.teardown(() => source[Symbol.asyncDispose]())
  let config = await readFile(source.configFile, 'utf8')
  for (const [key, value] of Object.entries(settings)) {
    config = config.replace(new RegExp(`, ${key}: [^,}]+`), '')
    config = config.replace('stall: 5s', `stall: 5s, ${key}: ${value}`)
  }
  await writeFile(source.configFile, config)
  await source.serveNbd()
  const points = new Map<string, Buffer>()
  const { handlers } = source
  const { hello } = handlers
  handlers.hello = async params => ({
    ...(await hello(params)),
    features: ['digests', 'allocation', 'changes'],
  })
  const file = source.file('vda')
  const answer = (set: GrainSet, at: number) => {
    // Pages of two, so that there are several.
    const all = [...set.extents(at)].map(([offset, length]) => [offset, length] as [number, number])
    return { size: set.size, extents: all.slice(0, 2), next: all[2]?.[0] ?? null }
  }
  handlers.allocation = async ({ at }) => {
    const now = await readFile(file)
    return answer(differences(Buffer.alloc(now.length), now), at)
  }
  const layout = () => layoutOf(path.join(source.store, 'mydomain'))
  const self: Tracked = Object.assign(source, {
    says: undefined as GrainSet | undefined,
    restart: () => points.clear(),
    state: () => readState(layout()),
    async trust() {
      const { distrusted, ...trusting } = await readState(layout())
      if (distrusted) await writeState(layout(), trusting)
    },
    async pull(options = {}) {
      const clone = cloneConfig(loadConfig(source.configFile), 'mydomain')
      const { signal } = new AbortController()
      const pulled = await pull(clone, {
        ...{ adopt: false, full: false, signal, log, watcher: NOBODY },
        ...options,
      })
      const base = await readFile(file)
      points.set(pulled.recoveryPoint, base)
      const image = await readFile(path.join(pulled.dir, 'vda.raw'))
      t.ok(image.equals(base), 'the clone is the frozen base')
      return pulled
    },
    async write(offset: number, bytes: Buffer) {
      const handle = await open(file, 'r+')
      await handle.write(bytes, 0, bytes.length, offset)
      await handle.close()
    },
  })
  handlers.changes = async ({ since, at }) => {
    const before = points.get(since)
    if (!before) return { reason: 'the guest was started anew', extents: [], next: null }
    return answer(self.says ?? differences(before, await readFile(file)), at)
  }
  return self
}
