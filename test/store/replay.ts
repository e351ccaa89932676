// Power cuts: the disk as each prefix of what was written to it, with some of what was not flushed yet lost at will.

import { execa } from 'execa'
import { constants } from 'node:fs'
import { copyFile, mkdir, mkdtemp, open, rm, type FileHandle } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import type { FileSystem } from '../client/medium.ts'
import type { Dice } from '../faults/scenario.ts'
import type { Event } from './recorder-worker.ts'
import type { Recorder } from './recorder.ts'

/** One moment at which the power goes. */
export interface Cut {
  /** Events that came before it. */
  readonly at: number
  /** What the disk had not flushed: all of it was written, or each piece by a throw of the dice. */
  readonly unflushed: 'kept' | 'lost at random'
}

/** How many marks came before a cut. */
export function marksBefore(events: readonly Event[], { at }: Cut): number {
  return events.slice(0, at).filter(({ kind }) => kind === 'mark').length
}

/** Every moment after a write since the first mark, and after the last. */
export function everyCut(events: readonly Event[]): Cut[] {
  const first = events.findIndex(({ kind }) => kind === 'mark')
  return events.flatMap(({ kind }, index) => {
    const at = index + 1
    if (index < first || kind === 'flush' || kind === 'mark') return []
    return [
      { at, unflushed: 'kept' as const },
      { at, unflushed: 'lost at random' as const },
    ]
  })
}

/** So many of the cuts, in order. */
export function someOf(cuts: readonly Cut[], count: number, dice: Dice): Cut[] {
  const left = [...cuts]
  const taken = new Set<Cut>()
  while (taken.size < count && left.length > 0)
    for (const cut of left.splice(Math.floor(dice() * left.length), 1)) taken.add(cut)
  return cuts.filter(cut => taken.has(cut))
}

/** The disk, written up to the last flush before where it stands; goes forward only. */
export class Replay implements AsyncDisposable {
  readonly #dir: string
  readonly #disk: FileHandle
  readonly #events: readonly Event[]
  readonly #type: FileSystem
  readonly #dice: Dice
  #flushed = 0

  private constructor(
    dir: string,
    disk: FileHandle,
    type: FileSystem,
    events: readonly Event[],
    dice: Dice,
  ) {
    this.#dir = dir
    this.#disk = disk
    this.#type = type
    this.#events = events
    this.#dice = dice
  }

  static async of(recorder: Recorder, dice: Dice): Promise<Replay> {
    const events = await recorder.events()
    const dir = await mkdtemp(path.join(tmpdir(), 'nbd-clone-replay-'))
    // On XFS a copy of a disk costs nothing.
    const scratch = path.join(dir, 'scratch.img')
    const copies = path.join(dir, 'copies')
    await execa('truncate', ['-s', '2G', scratch])
    await execa('mkfs.xfs', ['-q', scratch])
    await mkdir(copies)
    await mkdir(path.join(dir, 'mounted'))
    await execa('mount', ['-o', 'loop', scratch, copies])
    const file = path.join(copies, 'disk')
    await execa('cp', ['--sparse=always', recorder.made, file])
    return new Replay(dir, await open(file, 'r+'), recorder.type, events, dice)
  }

  get events(): readonly Event[] {
    return this.#events
  }

  /** Mounts the disk as the cut leaves it, for as long as `look` looks. Cuts come in order. */
  async after<T>(cut: Cut, look: (mounted: string) => Promise<T>): Promise<T> {
    const lastFlush = this.#events.findLastIndex(
      ({ kind }, index) => index < cut.at && kind === 'flush',
    )
    for (; this.#flushed <= lastFlush; this.#flushed++)
      await apply(this.#disk, this.#events[this.#flushed])
    const copy = path.join(this.#dir, 'copies', 'cut')
    await copyFile(path.join(this.#dir, 'copies', 'disk'), copy, constants.COPYFILE_FICLONE_FORCE)
    {
      await using disk = await open(copy, 'r+')
      for (const event of this.#events.slice(this.#flushed, cut.at))
        if (cut.unflushed === 'kept' || this.#dice() < 0.5) await apply(disk, event)
    }
    const mounted = path.join(this.#dir, 'mounted')
    const options = this.#type === 'xfs' ? 'loop,nouuid' : 'loop'
    await execa('mount', ['-o', options, copy, mounted])
    try {
      return await look(mounted)
    } finally {
      await execa('umount', [mounted])
      await rm(copy)
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#disk.close()
    await execa('umount', ['--lazy', path.join(this.#dir, 'copies')])
    await rm(this.#dir, { recursive: true, force: true })
  }
}

async function apply(disk: FileHandle, event: Event | undefined): Promise<void> {
  if (event?.kind === 'write') await disk.write(event.data, 0, event.data.length, event.offset)
  if (event?.kind === 'zero')
    await disk.write(Buffer.alloc(event.length), 0, event.length, event.offset)
}
