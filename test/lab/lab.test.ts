// The lab does what the tests that stand on it take for granted.

import { spawn } from 'node:child_process'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { execa } from 'execa'
import t from 'tap'
import { readStatus, takeDown } from './control.ts'
import { childEnvironment } from './environment.ts'
import { startLab } from './lab.ts'
import { leftovers } from './leftovers.ts'
import { CACHE, DOMAIN, HOSTS, ROOT } from './names.ts'
import { readProcess, waitFor } from './processes.ts'
import { isLocked } from './protocol.ts'
import { assertGapless, readRecords } from './records.ts'

t.setTimeout(360_000)

/** A subtest that hangs fails by itself, and the next one runs. */
const QUICK = { timeout: 20_000 }
/** For what boots a guest or makes a lab. */
const BOOTS = { timeout: 60_000 }

const CLI = join(ROOT, 'dist', 'test', 'lab', 'cli.js')
const IMAGES = '/var/lib/libvirt/images'

t.test('a lab', async t => {
  const lab = await startLab()
  t.teardown(() => lab[Symbol.asyncDispose]())

  t.test('up gives a guest that answers and records that grow on both disks', QUICK, async t => {
    t.match((await lab.guest(['uname', '-s'])).stdout, 'Linux')
    for (const target of ['vda', 'vdb'] as const) {
      const before = await lab.lastRecord(target)
      await waitFor(`records on ${target}`, 10, async () => (await lab.lastRecord(target)) > before)
    }
  })

  t.test('what is up is on the list of what down must remove', QUICK, async t => {
    const list = (await leftovers()).join('\n')
    for (const kind of [/^process .*qemu/m, /^namespace /m, /^loop /m, /^directory /m])
      t.match(list, kind)
  })

  t.test('exit status, output and input of a command are its own', QUICK, async t => {
    const failed = await lab.source(['sh', '-c', 'echo out; echo err >&2; exit 7'], {
      reject: false,
    })
    t.strictSame(failed, { stdout: 'out', stderr: 'err', exitCode: 7 })
    const killed = await lab.standby(['sh', '-c', 'kill -9 $$'], { reject: false })
    t.equal(killed.exitCode, 137)
    t.equal((await lab.source(['cat'], { input: 'a "b" $c' })).stdout, 'a "b" $c')
    t.equal((await lab.source(['printf', '%s|', 'a b', '*', ''])).stdout, 'a b|*||')
    const inGuest = await lab.guest(['sh', '-c', 'echo out; echo err >&2; exit 3'])
    t.strictSame(inGuest, { stdout: 'out\n', stderr: 'err\n', exitCode: 3 })
    await t.rejects(lab.source(['sleep', '60'], { timeout: 200 }), /still running after 200 ms/)
  })

  t.test('a long-running command gets signals, and ends with its scope', QUICK, async t => {
    let pid: number
    {
      await using child = lab.spawn('source', ['sleep', '1000'])
      pid = await waitFor('the command', 5, () => child.pid)
      t.equal(readProcess(pid)?.zombie, false)
    }
    t.notOk(readProcess(pid))
    await using child = lab.spawn('source', [
      'sh',
      '-c',
      // The child is ended too: it would hold the output open.
      `trap 'kill $p; exit 5' USR1; sleep 1000 & p=$!; echo go; wait`,
    ])
    await new Promise(resolve => child.stdout.once('data', resolve))
    child.signal('SIGUSR1')
    t.equal((await child.result).exitCode, 5)
  })

  t.test('each host has its own name, processes, libvirt and configuration', QUICK, async t => {
    for (const host of HOSTS) {
      t.equal((await lab.run(host, ['hostname'])).stdout, host)
      t.equal((await lab.run(host, ['cat', '/proc/1/comm'])).stdout, 'sh')
      await lab.writeFile(host, '/etc/nbd-clone/who', host)
    }
    t.equal(await lab.readFile('source', '/etc/nbd-clone/who'), 'source')
    t.match((await lab.source(['virsh', 'list', '--name'])).stdout, DOMAIN)
    t.equal((await lab.standby(['virsh', 'list', '--all', '--name'])).stdout.trim(), '')
    t.match((await lab.standby(['findmnt', '-no', 'FSTYPE', '/var/lib'])).stdout, 'xfs')
  })

  t.test('root of each host logs in to the other without a question', QUICK, async t => {
    t.equal((await lab.standby(['ssh', 'source', 'hostname'])).stdout, 'source')
    t.equal((await lab.source(['ssh', 'standby', 'hostname'])).stdout, 'standby')
  })

  t.test('net-cut silences the source for the standby, net-heal brings it back', QUICK, async t => {
    const reach = ['ssh', '-o', 'ConnectTimeout=1', 'source', 'true']
    await lab.netCut()
    t.not((await lab.standby(reach, { reject: false })).exitCode, 0)
    await lab.netHeal()
    t.equal((await lab.standby(reach, { reject: false })).exitCode, 0, 'at once')
  })

  t.test('records read out of frozen images are of one instant', QUICK, async t => {
    await lab.source(['virsh', 'domfsfreeze', DOMAIN])
    const vda = await readRecords(await lab.path('source', `${IMAGES}/${DOMAIN}-vda.raw`), 'raw')
    const vdb = await readRecords(
      await lab.path('source', `${IMAGES}/${DOMAIN}-vdb.qcow2`),
      'qcow2',
    )
    await lab.source(['virsh', 'domfsthaw', DOMAIN])
    t.strictSame([vda.damage, vdb.damage], [undefined, undefined])
    assertGapless(vda.numbers, vdb.numbers)
    t.throws(() => assertGapless(vda.numbers, vdb.numbers.slice(0, -2)), /not one instant/)
    t.throws(() => assertGapless(vda.numbers.slice(1), vdb.numbers), /record 1 reads 2/)
  })

  t.test('a power cut loses what was not synced and nothing else', BOOTS, async t => {
    for (const host of HOSTS) {
      const write =
        'cd /var/lib; rm -f lost renamed; echo synced >kept; sync -f kept; echo dirty >lost; mv kept renamed'
      let found = ''
      // The file system may sync by itself in between, for the guest or every 5 seconds: then the cut came too late.
      for (let attempt = 0; attempt < 4 && found !== 'synced'; attempt++) {
        await lab.run(host, ['sh', '-c', write])
        await lab.powerCut(host)
        t.equal((await lab.status())?.hosts[host], false)
        await lab.boot(host, { guest: host === 'source' })
        const look = ['sh', '-c', 'cd /var/lib; cat kept; ls lost renamed']
        found = (await lab.run(host, look, { reject: false })).stdout
      }
      t.equal(found, 'synced')
    }
    t.equal((await lab.standby(['ssh', 'source', 'hostname'])).stdout, 'source')
    const before = await lab.lastRecord('vdb')
    t.ok(before > 1, 'the guest goes on where it was')
  })

  t.test('our programs are on the hosts as a user gets them', QUICK, async t => {
    for (const [host, program] of [
      ['standby', 'clone'],
      ['source', 'clone-server'],
    ] as const) {
      const found = await lab.run(host, ['sh', '-c', `readlink -f "$(command -v ${program})"`])
      t.match(found.stdout, new RegExp(`^${CACHE}/prefix/lib/node_modules/nbd-clone/dist/`))
      t.match((await lab.run(host, [program, '--version'])).stdout, /^\d+\.\d+\.\d+$/)
    }
    const packed = (await readdir(`${CACHE}/prefix/lib/node_modules/nbd-clone/dist`)).sort()
    t.strictSame(packed, ['client', 'server', 'shared'], 'nothing of the tests is packed')
  })

  t.test('down leaves nothing', QUICK, async t => {
    await lab[Symbol.asyncDispose]()
    t.strictSame(await leftovers(), [])
  })
})

t.test('a lab whose owner is killed is gone within seconds', BOOTS, async t => {
  const owner = spawn('sleep', ['1000'], { stdio: 'ignore' })
  t.teardown(() => owner.kill('SIGKILL'))
  await up('--owner', String(owner.pid))
  owner.kill('SIGKILL')
  await waitFor('the lab to go', 10, async () => !(await isLocked()))
  t.strictSame(await leftovers(), [])
})

t.test('Ctrl-C during up takes down what was made so far', BOOTS, async t => {
  t.equal(await readStatus(), undefined, 'no lab is up before')
  const making = execa(process.execPath, [CLI, 'up'], {
    env: childEnvironment(),
    extendEnv: false,
    reject: false,
  })
  await waitFor('the first process of the lab', 30, async () =>
    (await leftovers()).some(line => line.startsWith('process')),
  )
  making.kill('SIGINT')
  const { exitCode, stderr } = await making
  t.equal(exitCode, 130)
  t.match(stderr, /interrupted; the lab was taken down/)
  t.strictSame(await leftovers(), [])
  t.equal(await isLocked(), false)
})

t.test('down cleans up after a killed keeper', BOOTS, async t => {
  // An `up` that finds somebody's lab is content with it, and this test must not kill that one.
  t.equal(await readStatus(), undefined, 'no lab is up before')
  if (await isLocked()) return
  await up('--store', 'ext4', '--owner', String(process.pid))
  const status = await readStatus()
  t.equal(status?.owner, process.pid)
  if (status?.owner !== process.pid) return
  t.teardown(() => takeDown(status.keeper))
  t.match(status, { state: 'up', store: 'ext4', guest: true })
  process.kill(status.keeper, 'SIGKILL')
  await waitFor('the keeper to end', 5, () => readProcess(status.keeper)?.zombie !== false)
  t.not((await leftovers()).length, 0)
  t.strictSame(await takeDown(status.keeper), [])
  t.strictSame(await leftovers(), [])
})

/** Brings a lab up the way the command line does. */
async function up(...args: string[]): Promise<void> {
  await execa(process.execPath, [CLI, 'up', ...args], {
    env: childEnvironment(),
    extendEnv: false,
  })
}
