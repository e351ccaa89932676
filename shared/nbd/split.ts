// A read of any offset and length as the requests a server accepts: aligned to its minimum, no longer than its
// maximum. Section "Size constraints".

import { NBD_DEFAULT_MAX_PAYLOAD } from './constants.ts'
import { NbdError } from './faults.ts'

/** In bytes, as the server stated them or as the specification presumes. */
export interface BlockSize {
  readonly minimum: number
  readonly preferred: number
  readonly maximum: number
}

export interface ReadPart {
  readonly offset: number
  /** Where the reply goes: a part of the caller's buffer, or a block of its own. */
  readonly into: Uint8Array
  /** For a block of its own: the wanted bytes start at `skip`, and belong in `target`. */
  readonly bounce: { readonly skip: number; readonly target: Uint8Array } | undefined
}

/**
 * Refuses what the server would have to refuse.
 * @param length bytes, 0 or more
 * @throws INVALID_REQUEST outside the export, or in a tail shorter than the minimum block, which NBD cannot address
 */
export function checkRange(offset: number, length: number, size: number, minimum: number): void {
  const whole = Number.isSafeInteger(offset) && Number.isSafeInteger(length)
  if (!whole || offset < 0 || length < 0 || offset > size - length)
    throw new NbdError(
      'INVALID_REQUEST',
      `NBD: ${length} bytes at ${offset} are outside the export of ${size} bytes`,
    )
  const reachable = size - (size % minimum)
  if (length > 0 && offset + length > reachable)
    throw new NbdError(
      'INVALID_REQUEST',
      `NBD: the export's ${size} bytes are no multiple of its minimum block of ${minimum}: ` +
        `the bytes from ${reachable} on cannot be read`,
    )
}

/** The requests for one read, in order. Only the first and the last can need a bounce block. */
export function planRead(offset: number, into: Uint8Array, block: BlockSize): ReadPart[] {
  const { minimum } = block
  const limit = Math.min(block.maximum, NBD_DEFAULT_MAX_PAYLOAD)
  const longest = limit - (limit % minimum)
  if (into.length <= longest && offset % minimum === 0 && into.length % minimum === 0)
    return [{ offset, into, bounce: undefined }]
  const parts: ReadPart[] = []
  const end = offset + into.length
  for (let at = offset; at < end;) {
    const skip = at % minimum
    const left = end - at
    const partial = skip > 0 || left < minimum
    const take = partial
      ? Math.min(minimum - skip, left)
      : Math.min(longest, left - (left % minimum))
    const target = into.subarray(at - offset, at - offset + take)
    parts.push(
      partial
        ? { offset: at - skip, into: new Uint8Array(minimum), bounce: { skip, target } }
        : { offset: at, into: target, bounce: undefined },
    )
    at += take
  }
  return parts
}
