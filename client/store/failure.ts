// What went wrong in a store's file system, told from all else that can go wrong in a pull.

import { toFailure, type Failure } from '../../shared/failures.ts'
import { storeFailure } from '../copy/image.ts'

/** What an open file's write or fsync says; such errors carry no path. */
const WITHOUT_PATH = new Set(['ENOSPC', 'EDQUOT', 'EIO', 'EROFS', 'EFBIG'])

/** Errors of the file system under `dir` become SPACE or STANDBY_IO and name a path; all others stay what they are. */
export function ofStore(dir: string, thrown: unknown): Failure {
  const error = rootOf(thrown)
  const { code, path } = (error ?? {}) as NodeJS.ErrnoException
  const ours = code !== undefined && (path?.startsWith(dir) ?? WITHOUT_PATH.has(code))
  return ours ? storeFailure(path ?? dir, error) : toFailure(error)
}

/** When clearing up fails too, what counts is why it was begun. */
function rootOf(error: unknown): unknown {
  const both = error as { name?: unknown; suppressed?: unknown } | undefined
  return both?.name === 'SuppressedError' ? rootOf(both.suppressed) : error
}
