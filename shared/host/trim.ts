// Giving ranges back: what Node lacks of fallocate(2).

/**
 * Makes a range of a file or block device read as zeros and gives its space back (FALLOC_FL_PUNCH_HOLE).
 * @param offset bytes. @param length bytes. Rejects with the errno error; EOPNOTSUPP where that does not exist
 */
export async function trim(fd: number, offset: number, length: number): Promise<void> {
  // A native module: only those who write wait for it.
  const { default: extensions } = await import('fs-native-extensions')
  await extensions.trim(fd, offset, length)
}
