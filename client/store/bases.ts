// What the disks of a pull are built upon: for each the generation that has its image, and how that becomes the next one.

import { lstat, stat } from 'node:fs/promises'
import path from 'node:path'
import type { CloneConfig } from '../config/effective.ts'
import { chunkCount, type Held } from '../plan.ts'
import { checkUnused } from './guard.ts'
import { takeDevice } from './device.ts'
import { isUndamaged, type Sound } from './generation.ts'
import { imageName, manifestName, type Layout } from './layout.ts'
import { manifestDigest } from './manifest.ts'
import type { Method } from './method.ts'
import type { DiskRoom } from './room.ts'
import type { Disk } from './view.ts'

/** A disk as the source describes it before it is frozen. */
export interface Described {
  readonly target: string
  readonly format: 'raw' | 'qcow2'
  readonly size: number | undefined
  readonly allocated?: number | undefined
}

/** What one disk is built upon. */
export interface Base {
  readonly generation: Sound
  /** The disk as it is there. */
  readonly disk: Disk
  /** The image, whole. */
  readonly image: string
  readonly method: Method
  /** Damage is known that may be in it. */
  readonly damaged: boolean
  /** Whether the manifest says what the image holds: not when it is damaged, or everything is to be written anew. */
  readonly trusted: boolean
}

export interface Bases extends AsyncDisposable {
  readonly method: Method
  /** Target -> what it is built upon. */
  readonly of: ReadonlyMap<string, Base>
  /** Target -> the block device that its image is on, when nothing of worth is on that. */
  readonly blank: ReadonlyMap<string, string>
}

/**
 * Finds what disks are built upon, and takes their block devices, until it is disposed of. Only under the clone's lock.
 * @param sound all generations, oldest first. @param full everything is to be written anew
 * @throws Failure UNSAFE, USAGE, STANDBY_IO for a device
 */
export async function findBases(
  layout: Layout,
  sound: readonly Sound[],
  disks: readonly Described[],
  { method, full, devices }: { method: Method; full: boolean } & Pick<CloneConfig, 'devices'>,
): Promise<Bases> {
  const of = new Map<string, Base>()
  const blank = new Map<string, string>()
  const taken: AsyncDisposable[] = []
  const letGo = async (): Promise<void> => {
    for (const device of taken.splice(0)) await device[Symbol.asyncDispose]()
  }
  const add = async (generation: Sound, disk: Disk | undefined, how: Method): Promise<void> => {
    if (!disk) return
    const image = path.join(generation.dir, imageName(disk))
    // A newer generation that is damaged may share the very blocks that went bad.
    const sharesDamage = sound.some(
      one => one.damaged !== undefined && one.generation.seq >= generation.generation.seq,
    )
    const damaged = sharesDamage || !(await isIntact(generation.dir, disk))
    of.set(disk.target, {
      generation,
      disk,
      image,
      method: how,
      damaged,
      trusted: !full && !damaged,
    })
  }
  // In place a damaged image can be built upon, because then all of it is written.
  const newest = method === 'in-place' ? sound.at(-1) : sound.filter(isUndamaged).at(-1)
  try {
    for (const wanted of disks) {
      const { target, size = 0 } = wanted
      const device = devices.get(target)
      if (device !== undefined) {
        const it = await takeDevice(layout, sound, { target, size, device })
        taken.push(it)
        const { holder } = it
        if (!holder) blank.set(target, it.path)
        else
          await add(
            holder,
            holder.generation.disks.find(disk => disk.target === target),
            'in-place',
          )
        continue
      }
      const disk = newest?.generation.disks.find(one => imageName(one) === imageName(wanted))
      // A link is to a block device that the configuration names no more: left to the generation that it is of.
      if (newest && disk && (await isFile(path.join(newest.dir, imageName(disk)))))
        await add(newest, disk, method)
    }
    return { method, of, blank, [Symbol.asyncDispose]: letGo }
  } catch (error) {
    await letGo()
    throw error
  }
}

/** Whether the manifest is the one that generation.json names, and a file as long as it says: else it tells of other bytes. */
async function isIntact(dir: string, disk: Disk): Promise<boolean> {
  try {
    const image = await stat(path.join(dir, imageName(disk)))
    if (image.isFile() && image.size !== disk.size) return false
    const manifest = path.join(dir, manifestName(disk))
    return (await manifestDigest(manifest, chunkCount(disk.size))) === disk.digest
  } catch {
    return false
  }
}

const isFile = async (file: string): Promise<boolean> =>
  (await lstat(file).catch(() => undefined))?.isFile() ?? false

/** The images that a pull changes in place. */
const patched = ({ of }: Bases): Base[] =>
  [...of.values()].filter(({ method }) => method === 'in-place')

/** @throws Failure UNSAFE when somebody uses an image that would be changed in place */
export async function checkPatched(layout: Layout, bases: Bases): Promise<void> {
  await checkUnused(
    layout,
    [],
    patched(bases).map(({ image }) => image),
  )
}

export const isInPlace = (bases: Bases): boolean => patched(bases).length > 0

/** What a plan must know of a generation's disks. */
export const heldIn = ({ id, damaged, generation }: Sound): Held[] =>
  generation.disks.map(({ target, format, size }) => {
    return { target, format, size, id, damaged: damaged !== undefined }
  })

/**
 * What a plan must know of the disks that are built upon, and of those whose format is another one now; undefined without a
 * generation. @param newest the newest generation. @param disks as they were frozen
 */
export function heldBy(
  newest: Sound | undefined,
  { of }: Bases,
  disks: readonly { target: string; format: string }[],
): Held[] | undefined {
  if (!newest) return undefined
  const isOther = (one: Held): boolean =>
    disks.some(({ target, format }) => target === one.target && format !== one.format)
  const built = [...of.values()].flatMap(({ generation, disk, damaged }) =>
    heldIn(generation)
      .filter(({ target }) => target === disk.target)
      .map(held => ({ ...held, damaged })),
  )
  return [...built, ...heldIn(newest).filter(one => !of.has(one.target) && isOther(one))]
}

/** What each disk may take of the store's space. */
export async function roomOf(disks: readonly Described[], bases: Bases): Promise<DiskRoom[]> {
  return Promise.all(
    disks.map(async ({ target, size, allocated }) => {
      const base = bases.of.get(target)
      const found = base && (await stat(base.image))
      const device = bases.blank.has(target) || found?.isBlockDevice() === true
      const before = base && {
        size: base.disk.size,
        occupied: device ? base.disk.size : (found?.blocks ?? 0) * 512,
      }
      return {
        ...{ target, device, allocated, basis: before },
        size: size ?? base?.disk.size ?? 0,
        method: base?.method ?? ('whole' as const),
      }
    }),
  )
}
