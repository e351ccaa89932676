// Reading a file's bytes from its medium: past the page cache where the file system lets us, else after dropping them from it.

import { read } from 'node:fs'
import { promisify } from 'node:util'
import { Failure } from '../../shared/failures.ts'
import { reasonOf, run } from '../../shared/host/run.ts'

/** How a file must be read so that the medium answers. */
export interface Medium {
  /** The file opened with O_DIRECT; undefined where that cannot be read, so that the other descriptor has to do. */
  readonly direct: number | undefined
  /** Its bytes may still come from the page cache, whatever was tried. */
  readonly cached: boolean
}

const readAt = promisify(read)
/** What every file system that has O_DIRECT reads. */
const BLOCK = 4096
/** What file systems say that take O_DIRECT when a file is opened and refuse it when it is read. */
const REFUSED = new Set(['EINVAL', 'EOPNOTSUPP', 'ENOTSUP', 'ESPIPE'])

/**
 * Prepares a file, fsynced before, for being read from its medium. Its cached pages are dropped in any case: some file
 * systems take O_DIRECT and read through the cache all the same (ext4 with data=journal).
 * @param direct the file opened with O_DIRECT, if it could be. @param probe page-aligned memory, overwritten
 */
export async function pastCache(
  file: string,
  direct: number | undefined,
  probe: Uint8Array | undefined,
  signal: AbortSignal,
): Promise<Medium> {
  const why = await dropCache(file, signal)
  if (direct !== undefined && (probe === undefined || (await isReadable(direct, probe))))
    return { direct, cached: false }
  return { direct: undefined, cached: why !== undefined || (await isCached(file, signal)) }
}

/** As pastCache, for bytes that prove nothing unless the medium gave them. @throws Failure STANDBY_IO with the path */
export async function mustPassCache(...args: Parameters<typeof pastCache>): Promise<Medium> {
  const [file, , , signal] = args
  const medium = await pastCache(...args)
  if (medium.direct !== undefined) return medium
  const why = await dropCache(file, signal)
  if (why !== undefined)
    throw new Failure('STANDBY_IO', `${file}: cannot be read past the page cache: ${why}`)
  return medium
}

async function isReadable(direct: number, probe: Uint8Array): Promise<boolean> {
  try {
    await readAt(direct, probe, 0, BLOCK, 0)
    return true
  } catch (error) {
    // Anything else is for the one who reads in earnest.
    return !REFUSED.has((error as NodeJS.ErrnoException).code ?? '')
  }
}

/** posix_fadvise(DONTNEED), which dd offers. @returns why it could not be done */
async function dropCache(file: string, signal: AbortSignal): Promise<string | undefined> {
  const args = [`if=${file}`, 'iflag=nocache', 'count=0', 'status=none']
  const dropped = await run('dd', args, { signal })
  return dropped.exitCode === 0 ? undefined : reasonOf(dropped)
}

/** The kernel takes the advice or not (pages in use, tmpfs), so it is asked what is left. */
async function isCached(file: string, signal: AbortSignal): Promise<boolean> {
  const left = await run('fincore', ['--noheadings', '--output', 'PAGES', '--', file], { signal })
  return left.exitCode !== 0 || left.stdout.trim() !== '0'
}

/** What the kernel says when a medium, or the file system on it, does not give what it should. */
const MEDIUM_ERRORS = new Set(['EIO', 'EUCLEAN', 'EBADMSG', 'ENODATA', 'EREMOTEIO', 'EILSEQ'])

/** Whether an error tells of damage to what was read, not of how it was asked for. */
export function isMediumError(error: unknown): boolean {
  const { code, cause } = (error ?? {}) as NodeJS.ErrnoException & { cause?: unknown }
  return code === 'STANDBY_IO' ? isMediumError(cause) : MEDIUM_ERRORS.has(code ?? '')
}
