// What qemu-img is given to work with: never an image that leads to another file of this host.

import { execFileSync } from 'node:child_process'
import { closeSync, constants, openSync, rmSync } from 'node:fs'
import { mkdtemp, open, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { convertImage, measureImage } from '../client/convert.ts'
import { requires } from './nbd/requires.ts'

const never = new AbortController().signal

t.test(
  'what a hostile qcow2 names is not even opened, neither to measure nor to convert',
  { skip: requires('qemu-img', 'mkfifo') },
  async t => {
    const dir = await mkdtemp(path.join(tmpdir(), 'nbd-clone-test-'))
    t.teardown(() => rm(dir, { recursive: true, force: true }))
    const [image, named] = [path.join(dir, 'made.qcow2'), path.join(dir, 'named')]
    execFileSync('qemu-img', ['create', '-q', '-f', 'raw', named, '1M'])
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', named, image])
    rmSync(named)
    execFileSync('mkfifo', [named])
    // Who opens a pipe to write to it waits until somebody opens it to read.
    const opened = open(named, 'w').then(async handle => {
      await handle.close()
      return 'opened'
    })
    const from = { file: image, format: 'qcow2' } as const
    const refused = {
      code: 'UNSAFE',
      message: `${image} needs another file, ${named}, so it is not converted`,
    }
    await t.rejects(measureImage(from, 'raw', never), refused)
    const to = { file: path.join(dir, 'made.raw'), format: 'raw' } as const
    await t.rejects(convertImage(from, to, never), refused)
    t.equal(await Promise.race([opened, sleep(200, 'nobody')]), 'nobody')
    closeSync(openSync(named, constants.O_RDONLY | constants.O_NONBLOCK))
    await opened
  },
)

t.test('an image that is alone is measured', { skip: requires('qemu-img') }, async t => {
  const dir = await mkdtemp(path.join(tmpdir(), 'nbd-clone-test-'))
  t.teardown(() => rm(dir, { recursive: true, force: true }))
  const file = path.join(dir, 'made.qcow2')
  execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', file, '1M'])
  t.equal(await measureImage({ file, format: 'qcow2' }, 'raw', never), 1024 * 1024)
})
