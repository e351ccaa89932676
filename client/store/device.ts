// Block devices that hold images: taken only when blank or ours, exclusively, and known by identity, not by name.

import { readdir, readFile, readlink, realpath, rename, rm, stat, symlink } from 'node:fs/promises'
import type { FileHandle } from 'node:fs/promises'
import path from 'node:path'
import { z } from 'zod'
import { Failure } from '../../shared/failures.ts'
import { fsyncPath, writeDurably } from '../../shared/host/durable.ts'
import { reasonOf, run } from '../../shared/host/run.ts'
import { formatSize } from '../../shared/quantities.ts'
import { storeFailure } from '../copy/image.ts'
import { openToWrite } from './exclusive.ts'
import type { Sound } from './generation.ts'
import { identityOf } from './identity.ts'
import { imageName, layoutOf, type Layout } from './layout.ts'

const MIB = 1024 * 1024

const schema = z.object({
  schema: z.literal(1),
  devices: z.array(z.object({ target: z.string(), identity: z.string(), path: z.string() })),
})
type Known = z.infer<typeof schema>['devices'][number]

export interface DeviceOfDisk {
  readonly target: string
  /** Bytes of the disk, at most those of the device. */
  readonly size: number
  /** The device as the configuration names it. */
  readonly device: string
}

/** A device that this process alone may use, until it is disposed of. */
export interface TakenDevice extends AsyncDisposable {
  /** What a link to it leads to. */
  readonly path: string
  /** The generation whose image is on it now: a pull builds upon that one, whatever is newer, or it would be lost. */
  readonly holder: Sound | undefined
}

/**
 * Takes the device of a disk for writing. Its identity is durable before this returns; a device that has another name now is
 * followed. Only under the clone's lock. @param sound all generations
 * @throws Failure USAGE, UNSAFE, STANDBY_IO
 */
export async function takeDevice(
  layout: Layout,
  sound: readonly Sound[],
  { target, size, device }: DeviceOfDisk,
): Promise<TakenDevice> {
  const real = await blockDevice(target, device)
  const identity = await identify(device, real)
  const known = await readKnown(layout)
  await checkNobodyElses(layout, target, device, identity)
  const ours = known.find(one => one.identity === identity)
  const before = known.find(one => one.target === target && one.path === device)
  if (before && before.identity !== identity) throw anotherDevice(device, before.identity, identity)
  const handle = await openToWrite(real)
  try {
    const bytes = await sizeOf(real)
    if (bytes < size)
      throw new Failure(
        'UNSAFE',
        `${device} has ${formatSize(bytes)} (${bytes} bytes), but disk ${target} has ${formatSize(size)} (${size} bytes)`,
        { remedy: 'make the device larger, or name a larger one in standby.yaml' },
      )
    if (!ours) await checkBlank(handle, device, bytes)
    if (ours?.path !== device) {
      const others = known.filter(one => one !== ours)
      await writeKnown(layout, [...others, { target, identity, path: device }])
      if (ours) await followDevice(sound, ours, device)
    }
    const holder = await holderOn(sound, target, real)
    return { path: device, holder, [Symbol.asyncDispose]: () => handle.close() }
  } catch (error) {
    await handle.close()
    throw error
  }
}

/**
 * Before an image on a block device is written: is that still the device that it was? Files pass.
 * @param image of the clone. @throws Failure UNSAFE naming both identities
 */
export async function checkSameDevice(
  layout: Layout,
  target: string,
  image: string,
): Promise<void> {
  const real = await realpath(image).catch((error: unknown) => {
    throw storeFailure(image, error)
  })
  if (!(await stat(real)).isBlockDevice()) return
  const device = await readlink(image)
  const known = (await readKnown(layout)).find(one => one.target === target && one.path === device)
  const identity = await identify(device, real)
  if (known?.identity !== identity)
    throw anotherDevice(device, known?.identity ?? 'unknown', identity)
}

const anotherDevice = (device: string, was: string, is: string): Failure =>
  new Failure('UNSAFE', `${device} is another device now: it was ${was}, and is ${is}`, {
    remedy: 'name the right one in standby.yaml, by a name that stays, as in /dev/disk/by-id',
  })

async function blockDevice(target: string, device: string): Promise<string> {
  try {
    const real = await realpath(device)
    if ((await stat(real)).isBlockDevice()) return real
  } catch (error) {
    throw storeFailure(device, error)
  }
  throw new Failure('USAGE', `disks.${target}.device: ${device} is not a block device`)
}

async function identify(device: string, real: string): Promise<string> {
  const identity = await identityOf(real)
  if (identity !== undefined) return identity
  throw new Failure('UNSAFE', `${device} has nothing by which it could be known again`, {
    remedy: 'use a logical volume or a partition on it, or give it a serial number',
  })
}

/** @throws Failure UNSAFE when another disk, of this clone or of another one in the store, is on the device */
async function checkNobodyElses(
  layout: Layout,
  target: string,
  device: string,
  identity: string,
): Promise<void> {
  const store = path.dirname(layout.dir)
  for (const clone of await readdir(store)) {
    const known = await readKnown(layoutOf(path.join(store, clone)))
    const other = known.find(one => one.identity === identity)
    if (!other || (path.join(store, clone) === layout.dir && other.target === target)) continue
    throw new Failure(
      'UNSAFE',
      `${device} (${identity}) holds disk ${other.target} of the clone ${clone}`,
      { remedy: 'name another device in standby.yaml' },
    )
  }
}

const fileOf = (layout: Layout): string => path.join(layout.dir, 'devices.json')

async function readKnown(layout: Layout): Promise<Known[]> {
  const file = fileOf(layout)
  let text: string
  try {
    text = await readFile(file, 'utf8')
  } catch (error) {
    const { code = '' } = error as NodeJS.ErrnoException
    if (['ENOENT', 'ENOTDIR'].includes(code)) return []
    throw storeFailure(file, error)
  }
  try {
    return schema.parse(JSON.parse(text)).devices
  } catch (error) {
    throw new Failure('UNSAFE', `${file} cannot be understood, so no device is known to be ours`, {
      cause: error,
      remedy: 'restore the file',
    })
  }
}

async function writeKnown(layout: Layout, devices: readonly Known[]): Promise<void> {
  const text = JSON.stringify({ schema: 1, devices }, undefined, 2)
  await writeDurably(fileOf(layout), `${text}\n`, 0o600)
}

/** Bytes; the kernel counts in 512, whatever the device's blocks are. */
async function sizeOf(real: string): Promise<number> {
  const file = `/sys/class/block/${path.basename(real)}/size`
  return Number(await readFile(file, 'utf8')) * 512
}

/** @throws Failure UNSAFE saying what is on it */
async function checkBlank(handle: FileHandle, device: string, size: number): Promise<void> {
  const refuse = (what: string): Failure =>
    new Failure('UNSAFE', `${device} is not blank: ${what}`, {
      remedy: `if nothing on it is of worth: wipefs --all ${device} && blkdiscard --zeroout ${device}`,
    })
  const found = await run('wipefs', ['--no-act', '--noheadings', '--output', 'TYPE', device])
  if (found.exitCode !== 0) throw new Failure('STANDBY_IO', `wipefs ${device}: ${reasonOf(found)}`)
  if (found.stdout.trim() !== '') throw refuse(found.stdout.trim().split(/\s+/).join(', '))
  for (const at of [0, Math.max(0, size - MIB)]) {
    const bytes = Buffer.alloc(Math.min(MIB, size))
    await handle.read(bytes, 0, bytes.length, at)
    if (bytes.some(byte => byte !== 0))
      throw refuse(`its ${at === 0 ? 'first' : 'last'} MiB holds data`)
  }
}

/** The same device by another name: links to it follow. */
async function followDevice(sound: readonly Sound[], was: Known, device: string): Promise<void> {
  for (const { dir, generation } of sound)
    for (const disk of generation.disks.filter(({ target }) => target === was.target)) {
      const image = path.join(dir, imageName(disk))
      if ((await readlink(image).catch(() => undefined)) !== was.path) continue
      await rm(`${image}.new`, { force: true })
      await symlink(device, `${image}.new`)
      await rename(`${image}.new`, image)
      await fsyncPath(dir)
    }
}

async function holderOn(
  sound: readonly Sound[],
  target: string,
  real: string,
): Promise<Sound | undefined> {
  for (const found of sound)
    for (const disk of found.generation.disks.filter(one => one.target === target)) {
      const leads = await realpath(path.join(found.dir, imageName(disk))).catch(() => undefined)
      if (leads === real) return found
    }
  return undefined
}
