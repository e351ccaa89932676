// The source: sessions, stock clients, refusals and left-overs, on a real guest.

import t from 'tap'
import type { Lab } from './lab.ts'
import { waitFor } from './processes.ts'
import {
  clone,
  CLONE,
  guestWrites,
  journalSteps,
  NBD,
  sourceFaults,
  startServe,
  startWorld,
  untilOnBases,
  VDA,
  wrapProgram,
  type Serve,
} from './world.ts'

t.setTimeout(1000_000)

const sha = async (lab: Lab, host: 'source' | 'standby', file: string): Promise<string> =>
  (await lab.run(host, ['sha256sum', file])).stdout.split(' ')[0] ?? ''

t.test('a source', async t => {
  const lab = await startWorld()
  t.teardown(() => lab[Symbol.asyncDispose]())
  let serve: Serve = await startServe(lab)
  const server = async (...args: string[]) =>
    lab.source(['clone-server', ...args], { reject: false, timeout: 60_000 })

  t.afterEach(async () => {
    t.strictSame(await sourceFaults(lab), [], 'the source is as it was found')
    await guestWrites(lab)
  })

  /** A connection of a client that has gone, and that still waits for its turn, may freeze the domain once more. */
  const untilQuiet = async (): Promise<void> => {
    await waitFor('all nbd-servers to end', 20, async () => {
      const { exitCode } = await lab.source(['pgrep', '-x', 'nbd-server'], { reject: false })
      return exitCode === 1
    })
    await untilOnBases(lab, 20)
  }

  t.test(
    'stock clients and clone pull copy one held recovery point at once: one session, one merge',
    async t => {
      const frozen = serve.count('frozen')
      const merged = serve.count('merged, on its bases')
      t.equal((await server('session', 'open', 'mydomain')).exitCode, 0)
      const base = await sha(lab, 'source', VDA)
      await lab.source(['mkdir', '-p', '/tmp/fuse'])
      const [nbdcopy, convert, fuse, pulled] = await Promise.all([
        lab.source(['nbdcopy', '--connections=4', NBD, '/tmp/nbdcopy.raw'], { timeout: 60_000 }),
        lab.source(['qemu-img', 'convert', '-f', 'raw', '-O', 'raw', NBD, '/tmp/convert.raw'], {
          timeout: 60_000,
        }),
        lab.source(
          [
            'sh',
            '-c',
            `nbdfuse /tmp/fuse/disk '${NBD}' & while ! [ -e /tmp/fuse/disk ]; do sleep 0.1; done; dd if=/tmp/fuse/disk of=/tmp/fuse.raw bs=1M status=none; fusermount3 -u /tmp/fuse; wait`,
          ],
          { timeout: 60_000 },
        ),
        clone(lab, 'pull', 'mydomain'),
      ])
      t.strictSame(
        [nbdcopy.exitCode, convert.exitCode, fuse.exitCode, pulled.exitCode],
        [0, 0, 0, 0],
        pulled.stderr,
      )
      for (const copy of ['nbdcopy', 'convert', 'fuse'])
        t.equal(await sha(lab, 'source', `/tmp/${copy}.raw`), base, copy)
      t.equal(await sha(lab, 'standby', `${CLONE}/current/vda.raw`), base, 'clone pull')
      t.equal(await sha(lab, 'source', VDA), base, 'the base did not change meanwhile')
      t.equal(serve.count('merged, on its bases'), merged, 'nothing merged while held')
      const closed = await server('session', 'close', 'mydomain')
      t.match(closed.stdout, /is merged/)
      t.equal(serve.count('frozen') - frozen, 1)
      t.equal(serve.count('merged, on its bases') - merged, 1)
    },
  )

  t.test('a stock client that leaves finds the domain merged when it returns', async t => {
    await untilQuiet()
    const copied = await lab.source(['nbdcopy', '--connections=1', NBD, '/tmp/a.raw'], {
      timeout: 60_000,
    })
    t.equal(copied.exitCode, 0)
    t.strictSame(await sourceFaults(lab), [])
    t.strictSame((await journalSteps(lab)).at(-1), 'done')
  })

  t.test('a client that is killed in the middle leaves nothing behind', async () => {
    for (let round = 0; round < 3; round++) {
      const slow = lab.spawn('source', ['sh', '-c', `exec nbdfuse /tmp/fuse/disk '${NBD}'`])
      await waitFor('the session', 30, async () =>
        (await server('status')).stdout.includes('frozen'),
      )
      slow.signal('SIGKILL')
      await slow.result
      await lab.source(['sh', '-c', 'fusermount3 -uz /tmp/fuse'], { reject: false })
      await untilOnBases(lab, 20)
    }
    await untilQuiet()
  })

  t.test('an export that is not there is denied, and nothing is frozen', async t => {
    const frozen = serve.count('frozen')
    for (const name of [
      'mydomain/vdz',
      'otherdomain/vda',
      'mydomain',
      'mydomain/vda@00000000000000000000000000000000',
      '../etc/passwd',
    ])
      t.not(
        (
          await lab.source(
            ['nbdinfo', '--size', `nbd+unix:///${name}?socket=/run/nbd-clone/nbd.sock`],
            { reject: false },
          )
        ).exitCode,
        0,
        name,
      )
    t.equal(serve.count('frozen'), frozen)
  })

  t.test('a domain that is not listed is refused by name', async t => {
    const refused = await server('session', 'open', 'otherdomain')
    t.equal(refused.exitCode, 11)
    t.match(refused.stderr, /domain otherdomain is not exported by this source/)
  })

  t.test('a second serve is refused, and the first goes on', async t => {
    const second = await server('serve')
    t.equal(second.exitCode, 30)
    t.match(second.stderr, /clone-server serve runs already \(pid \d+\)/)
    t.equal((await server('status')).exitCode, 0)
  })

  t.test(
    'a recovery point never goes backwards, and a closed session is not closed twice',
    async t => {
      const points: string[] = []
      for (let round = 0; round < 2; round++) {
        const opened = await server('session', 'open', 'mydomain', '--json')
        points.push((JSON.parse(opened.stdout) as { recoveryPoint: string }).recoveryPoint)
        t.equal((await server('session', 'close', 'mydomain')).exitCode, 0)
      }
      t.ok((points[0] ?? '') < (points[1] ?? ''), points.join(' < '))
      t.match((await server('session', 'close', 'mydomain')).stdout, /was not held/)
    },
  )

  t.test('serve merges what is frozen before it stops', async t => {
    t.equal((await server('session', 'open', 'mydomain')).exitCode, 0)
    const stopped = await serve.stop()
    t.equal(stopped.exitCode, 0)
    t.strictSame(await sourceFaults(lab), [])
    const without = await lab.source(['nbdinfo', '--size', NBD], { reject: false })
    t.not(without.exitCode, 0, 'nothing is exported without serve')
    serve = await startServe(lab)
  })

  t.test('what a killed serve left is recovered when it starts again', async t => {
    t.equal((await server('session', 'open', 'mydomain')).exitCode, 0)
    serve.process.signal('SIGKILL')
    await serve.process.result
    t.not((await sourceFaults(lab)).length, 0, 'the overlay is still there')
    serve = await startServe(lab)
    await untilOnBases(lab, 30)
    // The step is recorded after the last look at QEMU and both XMLs.
    await waitFor(
      'the journal to close',
      10,
      async () => (await journalSteps(lab)).at(-1) === 'done',
    )
  })

  t.test(
    'a guest is thawed within the deadline when serve dies between freeze and thaw',
    async t => {
      await serve.stop()
      const path = await wrapProgram(
        lab,
        'virsh',
        'case " $* " in *" snapshot-create-as "*) touch /run/at-snapshot; sleep 1000;; esac',
      )
      const doomed = await startServe(lab, path)
      const opening = server('session', 'open', 'mydomain')
      await waitFor(
        'the freeze',
        30,
        async () =>
          (await lab.source(['ls', '/run/at-snapshot'], { reject: false })).exitCode === 0,
      )
      const frozenAt = Date.now()
      const status = [
        'virsh',
        'qemu-agent-command',
        'mydomain',
        '{"execute":"guest-fsfreeze-status"}',
      ]
      t.match((await lab.source(status)).stdout, /frozen/)
      doomed.process.signal('SIGKILL')
      await doomed.process.result
      await opening
      await waitFor('the thaw', 13, async () =>
        (await lab.source(status)).stdout.includes('thawed'),
      )
      t.comment(`thawed ${Date.now() - frozenAt} ms after it was seen frozen`)
      await lab.source(['sh', '-c', 'pkill -f "[s]leep 1000" || true'])
      serve = await startServe(lab)
      await untilOnBases(lab, 30)
    },
  )

  t.test('a snapshot that fails leaves the source on its bases and says why', async t => {
    await serve.stop()
    const path = await wrapProgram(
      lab,
      'virsh',
      'case " $* " in *" snapshot-create-as "*) echo "error: internal error: no snapshot today" >&2; exit 1;; esac',
    )
    serve = await startServe(lab, path)
    const refused = await server('session', 'open', 'mydomain')
    t.equal(refused.exitCode, 12)
    t.match(
      refused.stderr,
      /no snapshot of disk vda of mydomain: internal error: no snapshot today/,
    )
    await serve.stop()
    serve = await startServe(lab)
  })

  t.test(
    'the classic nbd-server daemon with the generated config keeps the same promises',
    async t => {
      const { stdout: fragment } = await server('config', 'nbd-server')
      t.notMatch(fragment, /%/)
      await lab.writeFile('source', '/etc/nbd-clone/classic.d/clone.conf', fragment)
      await lab.writeFile(
        'source',
        '/etc/nbd-clone/classic.conf',
        '[generic]\nincludedir = /etc/nbd-clone/classic.d\nlistenaddr = 127.0.0.1\nport = 10810\n',
      )
      await lab.source([
        'nbd-server',
        '-C',
        '/etc/nbd-clone/classic.conf',
        '-p',
        '/run/classic.pid',
      ])
      const uri = 'nbd://127.0.0.1:10810/mydomain/vda'
      await waitFor(
        'the classic daemon',
        10,
        async () =>
          (await lab.source(['sh', '-c', 'ss -ltn | grep -q :10810'], { reject: false }))
            .exitCode === 0,
      )
      const merged = serve.count('merged, on its bases')
      t.equal(
        (
          await lab.source(['nbdcopy', '--connections=4', uri, '/tmp/classic.raw'], {
            timeout: 60_000,
          })
        ).exitCode,
        0,
      )
      await untilOnBases(lab, 20)
      t.equal(serve.count('merged, on its bases') - merged, 1, 'four connections, one merge')

      const killed = lab.spawn('source', [
        'sh',
        '-c',
        `mkdir -p /tmp/f2; exec nbdfuse /tmp/f2/disk ${uri}`,
      ])
      await waitFor('the session', 30, async () =>
        (await server('status')).stdout.includes('frozen'),
      )
      killed.signal('SIGKILL')
      await killed.result
      await lab.source(['sh', '-c', 'fusermount3 -uz /tmp/f2'], { reject: false })
      await untilOnBases(lab, 20)

      await serve.stop()
      t.not(
        (await lab.source(['nbdinfo', '--size', uri], { reject: false })).exitCode,
        0,
        'without serve the hook refuses',
      )
      await lab.source(['sh', '-c', 'kill $(cat /run/classic.pid)'])
      serve = await startServe(lab)
    },
  )

  t.test('the readers of a killed serve die with it, before their base is merged', async t => {
    const mounted = lab.spawn('source', ['nbdfuse', '/tmp/fuse/disk', NBD])
    await waitFor('the session', 30, async () => (await server('status')).stdout.includes('frozen'))
    const readers = ['pgrep', '-x', 'nbd-server']
    t.equal((await lab.source(readers, { reject: false })).exitCode, 0, 'it reads')
    serve.process.signal('SIGKILL')
    await serve.process.result
    await waitFor(
      'the end of the reader',
      2,
      async () => (await lab.source(readers, { reject: false })).exitCode !== 0,
    )
    t.not((await sourceFaults(lab)).length, 0, 'nothing is merged yet')
    serve = await startServe(lab)
    await untilOnBases(lab, 30)
    await lab.source(['sh', '-c', 'fusermount3 -uz /tmp/fuse'], { reject: false })
    mounted.signal('SIGKILL')
    await mounted.result
  })

  /** Runs `test` with a serve whose virsh is wrapped, then puts the plain one back. */
  async function withVirsh(script: string, test: () => Promise<void>): Promise<void> {
    await serve.stop()
    serve = await startServe(lab, await wrapProgram(lab, 'virsh', script))
    await test()
    await serve.stop()
    serve = await startServe(lab)
  }

  t.test(
    'serve that is stopped in the middle of a begin goes only when the source is on its bases',
    async t => {
      await withVirsh(
        'case " $* " in *" snapshot-create-as "*) touch /run/at-begin; sleep 3;; esac',
        async () => {
          const opening = server('session', 'open', 'mydomain')
          await waitFor(
            'the begin',
            30,
            async () =>
              (await lab.source(['ls', '/run/at-begin'], { reject: false })).exitCode === 0,
          )
          const stopped = await serve.stop()
          t.equal(stopped.exitCode, 0)
          t.strictSame(await sourceFaults(lab), [])
          await opening
        },
      )
    },
  )

  t.test('a snapshot that comes after the freeze deadline is not called quiesced', async t => {
    await withVirsh('case " $* " in *" snapshot-create-as "*) sleep 12;; esac', async () => {
      t.equal((await server('session', 'open', 'mydomain')).exitCode, 0)
      t.match((await server('status', '--json')).stdout, /"consistency":"crash"/)
      t.equal((await server('session', 'close', 'mydomain')).exitCode, 0)
    })
  })

  t.test(
    'a merge that fails is exit 13 for who closes, shows in status, and recover finishes it',
    async t => {
      await withVirsh(
        'case " $* " in *" blockcommit "*) [ -e /run/may-merge ] || { echo "error: no merge today" >&2; exit 1; };; esac',
        async () => {
          t.equal((await server('session', 'open', 'mydomain')).exitCode, 0)
          const closed = await server('session', 'close', 'mydomain')
          t.equal(closed.exitCode, 13)
          t.match(closed.stderr, /disk vda of mydomain: merge did not start: no merge today/)
          t.match((await server('status')).stdout, /unsettled/)
          t.equal((await server('recover', 'mydomain')).exitCode, 13)
          await lab.source(['touch', '/run/may-merge'])
          // serve looks again by itself, and may have been the first.
          const again = await server('recover', 'mydomain')
          t.equal(again.exitCode, 0)
          t.match(again.stdout, /recovered|nothing to do/)
          t.strictSame(await sourceFaults(lab), [])
        },
      )
    },
  )

  t.test(
    'a disk on a block device is frozen, read fresh and merged like one in a file',
    async t => {
      await lab.source([
        'sh',
        '-c',
        'truncate -s 64M /var/lib/block.img && mkfs.ext4 -q /var/lib/block.img',
      ])
      const device = (
        await lab.source(['losetup', '-f', '--show', '/var/lib/block.img'])
      ).stdout.trim()
      const attach = [
        'attach-disk',
        'mydomain',
        device,
        'sda',
        '--sourcetype',
        'block',
        '--targetbus',
        'usb',
      ]
      await lab.source(['virsh', ...attach, '--cache', 'none', '--persistent'])
      try {
        // A buffered reader that has been here before would see its old pages.
        await lab.source(['sha256sum', device])
        t.equal((await server('session', 'open', 'mydomain')).exitCode, 0)
        const copied = await lab.source(['nbdcopy', NBD.replace('vda', 'sda'), '/tmp/block.raw'], {
          timeout: 60_000,
        })
        t.equal(copied.exitCode, 0)
        const direct = `dd if=${device} bs=1M iflag=direct status=none | sha256sum | cut -d ' ' -f 1`
        t.equal(
          await sha(lab, 'source', '/tmp/block.raw'),
          (await lab.source(['sh', '-c', direct])).stdout,
        )
        t.equal((await server('session', 'close', 'mydomain')).exitCode, 0)
        t.match(
          (await lab.source(['virsh', 'domblklist', 'mydomain'])).stdout,
          new RegExp(`sda +${device}$`, 'm'),
        )
      } finally {
        await lab.source(['virsh', 'detach-disk', 'mydomain', 'sda', '--persistent'], {
          reject: false,
        })
        await lab.source(['losetup', '-d', device], { reject: false })
      }
    },
  )

  t.test('disks that cannot be cloned are refused with disk, reason and remedy', async t => {
    await lab.source([
      'sh',
      '-c',
      'cd /var/lib/libvirt/images && truncate -s 16M base.img && qemu-img create -q -f qcow2 -b base.img -F raw layer.qcow2 && chmod 666 base.img layer.qcow2',
    ])
    const cases = [
      {
        file: 'layer.qcow2',
        flags: ['--subdriver', 'qcow2'],
        reason: /disk sda of mydomain: it has a backing file/,
      },
      {
        file: 'base.img',
        flags: ['--subdriver', 'raw', '--mode', 'shareable'],
        reason: /disk sda of mydomain: a shareable disk/,
      },
    ]
    for (const { file, flags, reason } of cases) {
      const attach = [
        'attach-disk',
        'mydomain',
        `/var/lib/libvirt/images/${file}`,
        'sda',
        '--targetbus',
        'usb',
        ...flags,
      ]
      await lab.source(['virsh', ...attach, '--persistent'])
      const refused = await server('session', 'open', 'mydomain')
      t.equal(refused.exitCode, 11)
      t.match(refused.stderr, reason)
      t.match(refused.stderr, /hint: (flatten it|exclude it)/)
      await lab.source(['virsh', 'detach-disk', 'mydomain', 'sda', '--persistent'])
    }
    await lab.source([
      'sh',
      '-c',
      'rm /var/lib/libvirt/images/base.img /var/lib/libvirt/images/layer.qcow2',
    ])
  })

  t.test('an unhealthy domain is refused with reason and remedy', async t => {
    await lab.source(['virsh', 'destroy', 'mydomain'])
    const refused = await server('session', 'open', 'mydomain')
    t.equal(refused.exitCode, 75, refused.stdout)
    t.match(refused.stderr, /domain mydomain is shut off, and nothing would tell of its start/)
    await lab.source(['virsh', 'start', 'mydomain'])
    await waitFor(
      'the agent',
      60,
      async () => (await lab.guest(['true']).catch(() => undefined)) !== undefined,
    )
  })
})
