// One disk's image and manifest as open files: buffered, and O_DIRECT beside it where the file system allows.

import { constants } from 'node:fs'
import { open, type FileHandle } from 'node:fs/promises'
import { Failure, toFailure } from '../../shared/failures.ts'
import { trim } from '../../shared/host/trim.ts'
import { writer, type Write } from './writer.ts'

/** Descriptors are plain numbers because the worker threads use them; the owner closes them after the workers ended. */
export interface OpenImage extends AsyncDisposable {
  readonly file: string
  readonly fd: number
  /** The same file past the page cache; undefined where the file system has no O_DIRECT. */
  readonly direct: number | undefined
  readonly manifest: number
  /** It was made sparse and all zeros. */
  readonly isNew: boolean
  /** Takes page-aligned bytes, which may be shared memory. */
  readonly write: Write
  /** Makes a range zero, and gives it back to the file system where that can be. */
  readonly zero: (offset: number, length: number) => Promise<void>
  /** fsync of image and manifest. */
  sync(): Promise<void>
}

/** How an image is opened: `new` is sparse and all zeros, `patched` exists and holds something else, `read` is not written. */
type Manner = 'new' | 'patched' | 'read'

/** Creates a sparse image of `size` bytes and an empty manifest. @throws Failure SPACE or STANDBY_IO with the path */
export function createImage(file: string, manifestFile: string, size: number): Promise<OpenImage> {
  return openFiles(file, manifestFile, 'new', size)
}

/** Opens an image that holds other bytes, makes it `size` bytes long, and creates a manifest. @throws as createImage */
export function patchImage(file: string, manifestFile: string, size: number): Promise<OpenImage> {
  return openFiles(file, manifestFile, 'patched', size)
}

/** Opens a published image to be checked. @throws Failure STANDBY_IO with the path */
export function openImage(file: string, manifestFile: string): Promise<OpenImage> {
  return openFiles(file, manifestFile, 'read')
}

async function openFiles(
  file: string,
  manifestFile: string,
  manner: Manner,
  size?: number,
): Promise<OpenImage> {
  const handles: FileHandle[] = []
  const close = async (): Promise<void> => {
    for (const handle of handles.splice(0)) await handle.close()
  }
  try {
    const opened = async (name: string, how: string | number): Promise<FileHandle> => {
      const handle = await open(name, how, 0o600)
      handles.push(handle)
      return handle
    }
    const image = await opened(file, { new: 'wx+', patched: 'r+', read: 'r' }[manner])
    // A block device has the size it has.
    if (size !== undefined && (await image.stat()).isFile()) await image.truncate(size)
    const access = manner === 'read' ? constants.O_RDONLY : constants.O_RDWR
    const direct = await opened(file, access | constants.O_DIRECT).catch(() => undefined)
    const manifest = await opened(manifestFile, manner === 'read' ? 'r' : 'wx+')
    return {
      file,
      fd: image.fd,
      direct: direct?.fd,
      manifest: manifest.fd,
      isNew: manner === 'new',
      write: writer(image, direct ?? image),
      zero: (offset, length) =>
        manner === 'new' ? Promise.resolve() : zeroRange(image, offset, length),
      async sync() {
        try {
          await image.sync()
          await manifest.sync()
        } catch (error) {
          throw storeFailure(file, error)
        }
      },
      [Symbol.asyncDispose]: close,
    }
  } catch (error) {
    await close()
    throw storeFailure((error as NodeJS.ErrnoException).path ?? file, error)
  }
}

async function zeroRange(image: FileHandle, offset: number, length: number): Promise<void> {
  try {
    await trim(image.fd, offset, length)
  } catch (error) {
    const { code = '' } = error as NodeJS.ErrnoException
    if (!['EOPNOTSUPP', 'ENOTSUP', 'ENOSYS'].includes(code)) throw error
    const zeros = Buffer.alloc(length)
    for (let done = 0; done < length;)
      done += (await image.write(zeros, done, length - done, offset + done)).bytesWritten
  }
}

/** A file system's error as a Failure: SPACE when it is full, else STANDBY_IO; both name the path. */
export function storeFailure(file: string, error: unknown): Failure {
  const { code, message } = error as NodeJS.ErrnoException
  if (error instanceof Failure || code === undefined) return toFailure(error)
  if (code === 'ENOSPC' || code === 'EDQUOT')
    return new Failure('SPACE', `${file}: no space left on its file system`, { cause: error })
  const reason = message.replace(/^[A-Z0-9]+: (.*?), \w+.*$/, '$1')
  return new Failure('STANDBY_IO', `${file}: ${reason} (${code})`, { cause: error })
}
