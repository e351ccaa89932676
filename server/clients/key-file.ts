// An authorized_keys file, changed by root in a directory that may be another user's: whole or not at all, and never
// through a link that its user could have laid.

import { randomBytes } from 'node:crypto'
import { constants, type Stats } from 'node:fs'
import { lstat, open, rename, rm, stat } from 'node:fs/promises'
import path from 'node:path'
import { Failure, toFailure } from '../../shared/failures.ts'
import { fsyncPath } from '../../shared/host/durable.ts'

/** The file's text; empty when it is not there. @throws Failure UNSAFE when it is no plain file; USAGE */
export async function readKeyFile(file: string): Promise<string> {
  const found = await plainFile(file)
  if (!found) return ''
  const handle = await open(file, constants.O_RDONLY | constants.O_NOFOLLOW).catch(fail(file))
  try {
    return await handle.readFile('utf8')
  } finally {
    await handle.close()
  }
}

/**
 * Replaces the file atomically and durably. Owner and mode stay; a new one is 0600 and its directory's owner's.
 * @throws Failure USAGE, UNSAFE
 */
export async function writeKeyFile(file: string, text: string): Promise<void> {
  const directory = path.dirname(file)
  const before = await plainFile(file)
  const { uid, gid } = before ?? (await stat(directory).catch(fail(directory)))
  const beside = `${file}.${randomBytes(6).toString('hex')}`
  const handle = await open(beside, 'wx', 0o600).catch(fail(directory))
  try {
    await handle.writeFile(text)
    await handle.chown(uid, gid)
    await handle.chmod((before?.mode ?? 0o600) & 0o7777)
    await handle.sync()
    await rename(beside, file)
  } catch (error) {
    await rm(beside, { force: true })
    throw toFailure(error)
  } finally {
    await handle.close()
  }
  await fsyncPath(directory)
}

async function plainFile(file: string): Promise<Stats | undefined> {
  const found = await lstat(file).catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    return fail(file)(error)
  })
  if (!found || found.isFile()) return found
  throw new Failure('UNSAFE', `${file} is no plain file`, {
    remedy: 'name the file itself with --file',
  })
}

function fail(file: string): (error: unknown) => never {
  return error => {
    const { code, message } = error as NodeJS.ErrnoException
    throw new Failure('USAGE', `cannot use ${file}: ${code ?? message}`, { cause: error })
  }
}
