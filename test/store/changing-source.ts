// A source whose disks change from one recovery point to the next, and that remembers what each recovery point had.

import { writeFile } from 'node:fs/promises'
import { fakeSource, type FakeSource } from '../client/fake-source.ts'

export interface Disk {
  readonly format: 'raw' | 'qcow2'
  readonly content: Buffer
}
export type Disks = Readonly<Record<string, Disk>>

export interface ChangingSource extends AsyncDisposable {
  readonly fake: FakeSource
  /** Recovery point -> what its disks held: the truth that every clone is compared with. */
  readonly known: ReadonlyMap<string, Disks>
  /** A recovery point is known by another id, too. */
  alias(id: string, other: string): void
  /** What the disks hold from now on. */
  become(disks: Disks): Promise<void>
}

/** @param everNamed all disks that it will ever have */
export async function changingSource(everNamed: readonly string[]): Promise<ChangingSource> {
  const fake = await fakeSource(
    Object.fromEntries(everNamed.map(target => [target, Buffer.alloc(0)])),
  )
  const known = new Map<string, Disks>()
  let disks: Disks = {}
  const usual = { ...fake.handlers }
  const named = () =>
    Object.entries(disks).map(([target, { format, content }]) => {
      return { target, format, size: content.length }
    })
  fake.handlers.describe = async params => {
    const described = await usual.describe(params)
    const mine = named().map(({ target, format, size }) => {
      const before = described.disks.find(one => one.target === target)
      return { ...before, target, format, size, exported: true as const }
    })
    return { ...described, disks: mine }
  }
  fake.handlers['session.info'] = async params => {
    const info = await usual['session.info'](params)
    known.set(info.recoveryPoint.id, disks)
    return { ...info, disks: named() }
  }
  return {
    fake,
    known,
    alias: (id, other) => void known.set(other, known.get(id) ?? {}),
    async become(next) {
      disks = next
      for (const [target, { content }] of Object.entries(next))
        await writeFile(fake.file(target), content)
    },
    [Symbol.asyncDispose]: () => fake[Symbol.asyncDispose](),
  }
}

/** A copy of `content` with one byte changed in each of these chunks of 1 MiB. */
function changed(content: Buffer, ...chunks: readonly number[]): Buffer {
  const copy = Buffer.from(content)
  for (const chunk of chunks) {
    const at = chunk * 1024 * 1024 + 471
    // Never zero: a chunk of zeros is a hole, which no medium has to give back.
    copy.writeUInt8((copy.readUInt8(at) % 255) + 1, at)
  }
  return copy
}

/** One disk with a byte changed in each of these chunks. */
export function altered(disks: Disks, target: string, ...chunks: readonly number[]): Disks {
  return withContent(disks, target, content => changed(content, ...chunks))
}

export function withContent(
  disks: Disks,
  target: string,
  change: (content: Buffer) => Buffer,
): Disks {
  const disk = disks[target]
  if (!disk) throw new Error(`there is no ${target}`)
  return { ...disks, [target]: { ...disk, content: change(disk.content) } }
}
