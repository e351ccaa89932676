// Telling processes apart: a process id is used again, its start time with it is not.

import { readFile } from 'node:fs/promises'

/** Start time of a process in clock ticks since boot; undefined when it is gone, or is a zombie. */
export async function processStart(pid: number): Promise<string | undefined> {
  const text = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => undefined)
  const fields = text?.slice(text.lastIndexOf(')') + 2).split(' ')
  return fields?.[0] === 'Z' || fields?.[0] === 'X' ? undefined : fields?.[19]
}
