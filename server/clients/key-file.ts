// An authorized_keys file, changed by root in a directory that may be another user's: whole or not at all, and never
// through a link that its user could have laid, whether in the place of the file or of a directory on the way to it.

import { randomBytes } from 'node:crypto'
import { constants, type Stats } from 'node:fs'
import { lstat, open, readlink, rename, rm, type FileHandle } from 'node:fs/promises'
import path from 'node:path'
import { Failure } from '../../shared/failures.ts'

/** One file in one directory, from its reading to its writing, whatever is laid in the place of either meanwhile. */
export interface KeyFile extends AsyncDisposable {
  /** Empty when the file is not there. */
  readonly text: string
  /**
   * Replaces the file atomically and durably. Owner and mode stay; a new one is 0600 and its directory's owner's.
   * @throws Failure USAGE when it cannot
   */
  write(text: string): Promise<void>
}

/**
 * Reads the file, and keeps its directory open.
 * @returns undefined when there is no such directory
 * @throws Failure UNSAFE when the file is no plain one, or the path leads through a link; USAGE when it cannot be used
 */
export async function openKeyFile(file: string): Promise<KeyFile | undefined> {
  const directory = await openDirectory(path.dirname(path.resolve(file)), path.basename(file))
  if (!directory) return undefined
  // The path through our own descriptor is that of the directory that was checked, wherever its name leads by now.
  const inside = (name: string): string => `/proc/self/fd/${directory.fd}/${name}`
  const name = path.basename(file)
  try {
    const found = await readPlain(file, inside(name))
    return {
      text: found?.text ?? '',
      write: text => replace(file, text, { directory, inside, name }, found?.stats),
      [Symbol.asyncDispose]: () => directory.close(),
    }
  } catch (error) {
    await directory.close()
    throw error
  }
}

async function openDirectory(directory: string, name: string): Promise<FileHandle | undefined> {
  const flags = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW
  const handle = await open(directory, flags).catch(async (error: unknown) => {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ENOENT') return undefined
    const found = await lstat(directory).catch(() => undefined)
    if (!found?.isSymbolicLink()) return fail(directory)(error)
    const to = await readlink(directory).catch(() => 'elsewhere')
    throw leadsThroughLink(directory, path.resolve(path.dirname(directory), to), name)
  })
  if (!handle) return undefined
  // The kernel names what was opened: another name than ours means a link higher up.
  const real = await readlink(`/proc/self/fd/${handle.fd}`)
  if (real === directory) return handle
  await handle.close()
  throw leadsThroughLink(directory, real, name)
}

function leadsThroughLink(directory: string, real: string, name: string): Failure {
  return new Failure('UNSAFE', `${directory} leads through a link to ${real}`, {
    remedy: `if that is what is meant, name it as it is: --file ${path.join(real, name)}`,
  })
}

async function readPlain(
  file: string,
  opened: string,
): Promise<{ text: string; stats: Stats } | undefined> {
  const found = await lstat(opened).catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    return fail(file)(error)
  })
  if (!found) return undefined
  if (!found.isFile()) throw noPlainFile(file)
  // A pipe that was laid in its place since would keep us waiting for ever.
  const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK
  const handle = await open(opened, flags).catch(fail(file))
  try {
    const stats = await handle.stat()
    if (!stats.isFile()) throw noPlainFile(file)
    return { text: await handle.readFile('utf8'), stats }
  } finally {
    await handle.close()
  }
}

async function replace(
  file: string,
  text: string,
  at: { directory: FileHandle; inside: (name: string) => string; name: string },
  before: Stats | undefined,
): Promise<void> {
  const { directory, inside, name } = at
  const { uid, gid } = before ?? (await directory.stat())
  const beside = inside(`${name}.${randomBytes(6).toString('hex')}`)
  const handle = await open(beside, 'wx', 0o600).catch(fail(file))
  try {
    await handle.writeFile(text)
    await handle.chown(uid, gid)
    await handle.chmod((before?.mode ?? 0o600) & 0o7777)
    await handle.sync()
    await rename(beside, inside(name))
  } catch (error) {
    await rm(beside, { force: true })
    fail(file)(error)
  } finally {
    await handle.close()
  }
  await directory.sync()
}

function noPlainFile(file: string): Failure {
  return new Failure('UNSAFE', `${file} is no plain file`, {
    remedy: 'name the file itself with --file',
  })
}

function fail(file: string): (error: unknown) => never {
  return error => {
    const { code, message } = error as NodeJS.ErrnoException
    throw new Failure('USAGE', `cannot use ${file}: ${code ?? message}`, { cause: error })
  }
}
