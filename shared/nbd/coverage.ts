// Which bytes of a read have arrived: chunks may come in any order, but no byte twice and none missing.

/** Scattered pieces that one reply may be in at a time: 32 MiB in alternate blocks of 512 bytes, twice over. */
export const MAX_PIECES = 65536

/**
 * Sorted, disjoint and never adjacent: start, end, start, end ... in bytes from the start of the request. A reply
 * that comes in order is one pair all the way.
 */
export type Coverage = number[]

/**
 * Marks `start` to `end` (exclusive, not empty) as arrived.
 * @returns why it cannot be, or undefined when it is marked
 */
export function cover(
  covered: Coverage,
  start: number,
  end: number,
): 'OVERLAP' | 'TOO_MANY_CHUNKS' | undefined {
  let low = 0
  let high = covered.length / 2
  while (low < high) {
    const middle = (low + high) >>> 1
    if ((covered[2 * middle] ?? 0) < start) low = middle + 1
    else high = middle
  }
  const at = 2 * low
  const before = covered[at - 1]
  const after = covered[at]
  if ((before !== undefined && before > start) || (after !== undefined && after < end))
    return 'OVERLAP'
  const joinsBefore = before === start
  const joinsAfter = after === end
  if (joinsBefore && joinsAfter) covered.splice(at - 1, 2)
  else if (joinsBefore) covered[at - 1] = end
  else if (joinsAfter) covered[at] = start
  else if (covered.length >= 2 * MAX_PIECES) return 'TOO_MANY_CHUNKS'
  else covered.splice(at, 0, start, end)
  return undefined
}

/** Whether all of `length` bytes have arrived. */
export function isComplete(covered: Coverage, length: number): boolean {
  return covered.length === 2 && covered[0] === 0 && covered[1] === length
}
