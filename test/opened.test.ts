// Whether QEMU writes to the files at the paths of a domain's bases.

import t from 'tap'
import { spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { mkdtemp, rename, rm, writeFile } from 'node:fs/promises'
import { once } from 'node:events'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { checkOpened } from '../server/session/opened.ts'

t.test('a file that was replaced under a running domain is refused, with what to do', async t => {
  const dir = await mkdtemp(path.join(tmpdir(), 'nbd-clone-test-'))
  t.teardown(() => rm(dir, { recursive: true }))
  const base = path.join(dir, 'vda.raw')
  await writeFile(base, 'x')
  const uuid = randomUUID()
  // To us whatever is called with -uuid is QEMU.
  const program = 'open my $f, "+<", $ARGV[0]; $| = 1; print "open"; sleep 60'
  const child = spawn('perl', ['-e', program, base, '-uuid', uuid])
  t.teardown(() => child.kill('SIGKILL'))
  await once(child.stdout, 'data')
  const overlay = path.join(dir, 'overlay.qcow2')
  const disks = [
    { target: 'vda', format: 'raw' as const, base, baseType: 'file' as const, overlay },
  ]
  await checkOpened(uuid, 'mydomain', disks)
  await checkOpened(randomUUID(), 'mydomain', disks)
  await writeFile(`${base}.new`, 'y')
  await rename(`${base}.new`, base)
  await t.rejects(checkOpened(uuid, 'mydomain', disks), {
    code: 'NEEDS_OPERATOR',
    message: /disk vda of mydomain: .*vda\.raw is not the file that QEMU writes to/,
    hint: /virsh blockcopy mydomain vda/,
  })
})
