// A file as a medium gives it that cannot read one range of it any more: EIO, from a FUSE mount over it.

import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { statSync } from 'node:fs'
import { rename, writeFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Test } from 'tap'

/** @param from first byte that cannot be read. @returns puts the file back as it was; so does the end of the test */
export async function unreadable(
  t: Test,
  file: string,
  from: number,
  length: number,
): Promise<() => Promise<void>> {
  const good = `${file}.good`
  await rename(file, good)
  await writeFile(file, '')
  const pread =
    `if [ $4 -lt ${from + length} ] && [ $(($4+$3)) -gt ${from} ]; then echo EIO >&2; exit 1; fi; ` +
    `dd if=${good} iflag=skip_bytes,count_bytes skip=$4 count=$3 status=none`
  const command = ['nbdkit', '-f', 'eval', `get_size=stat -c %s ${good}`, `pread=${pread}`]
  const fuse = spawn('nbdfuse', [file, '[', ...command, ']'], { stdio: 'ignore' })
  const exited = once(fuse, 'exit')
  let mounted = true
  const restore = async (): Promise<void> => {
    if (!mounted) return
    mounted = false
    spawnSync('umount', [file])
    await exited
    await rename(good, file)
  }
  t.teardown(restore)
  while (statSync(file).size === 0) await sleep(10)
  return restore
}
