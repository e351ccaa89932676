// Domains that do not run as usual: shut off (under libvirt's hook), saved, paused, transient, with odd disks, and each
// quiesce policy with and without a guest agent.

import t, { type Test } from 'tap'
import { generationSchema } from '../../client/store/generation.ts'
import { START_HOOK } from '../../server/libvirt/start-hook.ts'
import { BRAKE_SOCKET, startBrake } from './brake.ts'
import type { CommandResult, HostProcess } from './enter.ts'
import { agentAnswers } from './guest.ts'
import type { HostName } from './names.ts'
import { readProcess, signal, waitFor } from './processes.ts'
import {
  clone,
  CLONE,
  IMAGES,
  journalSteps,
  NBD,
  sourceFaults,
  startServe,
  startWorld,
  VDA,
  VDB,
  wrapProgram,
  type Serve,
  SSH,
} from './world.ts'

t.setTimeout(1000_000)

/** A start may be held up for so long, whatever becomes of serve. */
const HOOK_SECONDS = 16

const sourceConfig = (policy = ''): string => `
listen: { tcp: { host: 10.77.77.1, insecure: true } }
domains: { mydomain: { ${policy} }, passing: {} }
`
const BRAKED = '/etc/nbd-clone/braked.yaml'
const BRAKED_CONFIG = `
sources: { alpha: { transport: unix, socket: ${BRAKE_SOCKET}, gate: ssh, host: source, ${SSH} } }
domains: { mydomain: { source: alpha, rpo: 4h, stall: 30s } }
`
/** Runs after ours, and sees what a start would find. */
const WITNESS = `#!/bin/sh
[ "$2 $3" = 'prepare begin' ] || exit 0
{ for pid in $(pgrep -x nbd-server); do find /proc/$pid/fd -lname '*/mydomain-vd*'; done; find /run/nbd-clone/exports -type l; date +%s%3N; } > /run/witness 2>/dev/null
`
/** A domain that exists only while it runs. */
const PASSING = `<domain type='qemu'><name>passing</name><memory unit='MiB'>32</memory>
<os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='${IMAGES}/passing.raw'/>
<target dev='vda' bus='virtio'/></disk><memballoon model='none'/></devices></domain>
`

t.test('a domain that does not run as usual', async t => {
  const lab = await startWorld(sourceConfig())
  t.teardown(() => lab[Symbol.asyncDispose]())
  await lab.writeFile('standby', BRAKED, BRAKED_CONFIG)
  let serve: Serve = await startServe(lab)

  const sh = async (host: HostName, script: string): Promise<string> =>
    (await lab.run(host, ['sh', '-c', script])).stdout
  const server = (...args: string[]): Promise<CommandResult> =>
    lab.source(['clone-server', ...args], { reject: false, timeout: 60_000 })
  const virsh = (...args: string[]): Promise<CommandResult> =>
    lab.source(['virsh', '-q', ...args], { timeout: 60_000 })
  const sha = async (host: HostName, file: string): Promise<string> =>
    (await sh(host, `sha256sum ${file}`)).split(' ')[0] ?? ''
  const published = (): Promise<string> =>
    sh('standby', `ls ${CLONE}/generations 2>/dev/null || true`)

  async function withConfig(policy: string): Promise<void> {
    await serve.stop()
    await lab.writeFile('source', '/etc/nbd-clone/source.yaml', sourceConfig(policy))
    serve = await startServe(lab)
  }

  async function restartLibvirtd(): Promise<void> {
    await sh(
      'source',
      'pid=$(cat /run/libvirtd.pid); kill $pid; while kill -0 $pid 2>/dev/null; do sleep 0.1; done; libvirtd -d',
    )
    await waitFor(
      'libvirtd',
      20,
      async () => (await lab.source(['virsh', 'list'], { reject: false })).exitCode === 0,
    )
  }

  /** Readers and links that the last start found when our hook had returned. */
  const found = async (): Promise<string> =>
    (await lab.readFile('source', '/run/witness')).trim().split('\n').slice(0, -1).join('\n')

  const startGuest = async (): Promise<void> => {
    await virsh('start', 'mydomain')
    await waitFor('the guest agent', 90, agentAnswers)
  }

  /** A pull that stands in the middle of its copy until `go`. */
  async function heldPull(): Promise<{ child: HostProcess; go: () => Promise<void> }> {
    const brake = await startBrake(lab)
    const child = lab.spawn('standby', ['clone', 'pull', 'mydomain', '--full', '--config', BRAKED])
    const early = child.result.then(({ stderr }) => {
      throw new Error(`the pull ended before it was held: ${stderr}`)
    })
    early.catch(() => undefined)
    await Promise.race([brake.held, early])
    const go = async (): Promise<void> => {
      brake.release()
      await child.result
      await brake[Symbol.asyncDispose]()
    }
    return { child, go }
  }

  /** Holds a session that must come about, and says how consistent it is. */
  async function consistencyOf(t: Test): Promise<string | undefined> {
    const opened = await server('session', 'open', 'mydomain')
    t.equal(opened.exitCode, 0, opened.stderr)
    const status = JSON.parse((await server('status', '--json')).stdout) as {
      domains: { consistency?: string }[]
    }
    const closed = await server('session', 'close', 'mydomain')
    t.equal(closed.exitCode, 0, closed.stderr)
    return status.domains[0]?.consistency
  }

  async function refused(
    t: Test,
    exit: number,
    sentence: RegExp,
    remedy: RegExp,
    domain = 'mydomain',
  ): Promise<void> {
    const ran = await server('session', 'open', domain)
    t.equal(ran.exitCode, exit, `${ran.stdout}${ran.stderr}`)
    t.match(ran.stderr, sentence)
    t.match(ran.stderr.split('hint: ')[1], remedy)
  }

  t.test(
    'without the hook a domain that is shut off is refused with the lines to type',
    async t => {
      await virsh('destroy', 'mydomain')
      const ran = await clone(lab, 'pull', 'mydomain')
      t.equal(ran.exitCode, 75, ran.stderr)
      t.match(
        ran.stderr,
        /mydomain is shut off, and nothing would tell of its start: .* is not there/,
      )
      const lines =
        /hint: virsh start mydomain; or to pull it as it is:\n +(.*)\n +(.*)\n/
          .exec(ran.stderr)
          ?.slice(1) ?? []
      t.match(lines, [
        /^clone-server config libvirt-hook \| install /,
        /^systemctl restart libvirtd$/,
      ])
      // libvirtd found no hook when it started, so it runs none.
      await sh('source', lines[0] ?? 'false')
      await refused(
        t,
        75,
        /libvirtd was started before .* was installed/,
        /\n +systemctl restart libvirtd\n/,
      )
      t.equal(await published(), '')
      await sh('source', `sed -i 's/^exit 0/exit 1/' ${START_HOOK}`)
      await refused(t, 75, /is of another installation/, /clone-server config libvirt-hook/)
      await sh('source', lines[0] ?? 'false')
    },
  )

  t.test('with the hook it is pulled as it is, and the clone says "off"', async t => {
    await lab.writeFile('source', `${START_HOOK}-witness`, WITNESS)
    await sh('source', `chmod 755 ${START_HOOK}-witness`)
    await restartLibvirtd()
    const ran = await clone(lab, 'pull', 'mydomain')
    t.equal(ran.exitCode, 0, ran.stderr)
    for (const [name, file] of [
      ['vda.raw', VDA],
      ['vdb.qcow2', VDB],
    ] as const)
      t.equal(await sha('standby', `${CLONE}/current/${name}`), await sha('source', file), name)
    const generation = generationSchema.parse(
      JSON.parse(await lab.readFile('standby', `${CLONE}/current/generation.json`)),
    )
    t.match(generation, { recoveryPoint: { consistency: 'off' }, definition: { live: null } })
    t.match((await lab.standby(['clone', 'status'])).stdout, / off /)
    t.match((await lab.standby(['clone', 'list', 'mydomain'])).stdout, / off /)
    t.equal((await clone(lab, 'verify', 'mydomain')).exitCode, 0)
    t.strictSame(await journalSteps(lab), ['intent', 'done'], 'nothing was done to the domain')
    t.match((await virsh('domstate', 'mydomain')).stdout, /shut off/)
    t.strictSame(await sourceFaults(lab), [])
    const copied = await lab.source(['nbdcopy', NBD, '/tmp/stock.raw'], { timeout: 60_000 })
    t.equal(copied.exitCode, 0)
    t.equal(await sha('source', '/tmp/stock.raw'), await sha('source', VDA), 'a stock client too')
  })

  t.test('a start in the middle of a pull is not held up, and fails the pull', async t => {
    const before = await published()
    const held = await heldPull()
    t.match((await server('status')).stdout, /mydomain +frozen/)
    const began = Date.now()
    await virsh('start', 'mydomain')
    const took = Date.now() - began
    t.ok(took < HOOK_SECONDS * 1000, `the start took ${took} ms`)
    t.comment(`the start took ${took} ms`)
    const { exitCode, stderr } = await held.child.result
    await held.go()
    t.equal(exitCode, 11, stderr)
    t.match(stderr, /the session ended under the pull: domain mydomain was started/)
    t.equal(await published(), before, 'nothing was published')
    t.equal(await found(), '', 'no reader and no link were there when the start went on')
    await waitFor('the guest agent', 90, agentAnswers)
    t.equal(await consistencyOf(t), 'quiesced', 'and now it is pulled by a snapshot')
  })

  t.test('a hold that a start has ended is told to who closes it', async t => {
    await virsh('destroy', 'mydomain')
    t.equal((await server('session', 'open', 'mydomain')).exitCode, 0)
    await virsh('start', 'mydomain', '--paused')
    const closed = await server('session', 'close', 'mydomain')
    t.equal(closed.exitCode, 11)
    t.match(closed.stderr, /domain mydomain was started, so its disks no longer stand still/)
    t.match((await server('session', 'close', 'mydomain')).stdout, /was not held/)
    await virsh('destroy', 'mydomain')
  })

  t.test('a start that falls into a begin fails it', async t => {
    await serve.stop()
    // The second answer of dominfo is true when it is given, and old when it is read.
    serve = await startServe(
      lab,
      await wrapProgram(
        lab,
        'virsh',
        'case " $* " in *" dominfo "*) "$real" "$@"; echo >>/run/asked; [ "$(wc -l </run/asked)" != 2 ] || sleep 3; exit;; esac',
      ),
    )
    const opening = server('session', 'open', 'mydomain')
    await waitFor(
      'the question',
      30,
      async () => (await sh('source', 'cat /run/asked 2>/dev/null || true')).length === 1,
    )
    await virsh('start', 'mydomain', '--paused')
    const opened = await opening
    t.equal(opened.exitCode, 11, opened.stdout)
    t.match(opened.stderr, /domain mydomain was started, so its disks no longer stand still/)
    await virsh('destroy', 'mydomain')
    await serve.stop()
    serve = await startServe(lab)
  })

  t.test('a start under another name ends it too, by its images', async t => {
    t.equal((await server('session', 'open', 'mydomain')).exitCode, 0)
    await lab.writeFile(
      'source',
      '/root/passing.xml',
      PASSING.replace(`${IMAGES}/passing.raw`, VDA),
    )
    await virsh('create', '--paused', '/root/passing.xml')
    const closed = await server('session', 'close', 'mydomain')
    await virsh('destroy', 'passing')
    t.equal(closed.exitCode, 11)
    t.match(closed.stderr, /domain passing was started on images of mydomain/)
  })

  t.test('a base that changes without a start is found at the release', async t => {
    const before = await published()
    const held = await heldPull()
    await sh('source', `dd if=${VDA} of=${VDA} bs=1 count=1 conv=notrunc status=none`)
    await held.go()
    const { exitCode, stderr } = await held.child.result
    t.equal(exitCode, 20, stderr)
    t.match(
      stderr,
      /nothing is published, .*did not stay shut off.*mydomain-vda\.raw of disk vda was changed/,
    )
    t.equal(await published(), before)
  })

  t.test(
    'a block device that is written to is found too, one that is only read is not',
    async t => {
      await sh('source', 'truncate -s 16M /var/lib/block.img')
      const device = await sh('source', 'losetup -f --show /var/lib/block.img')
      const attach = ['attach-disk', 'mydomain', device, 'sda', '--sourcetype', 'block', '--config']
      await virsh(...attach, '--targetbus', 'usb')
      try {
        t.equal(await consistencyOf(t), 'off')
        t.equal((await server('session', 'open', 'mydomain')).exitCode, 0)
        await sh('source', `dd if=/dev/zero of=${device} bs=4k count=1 conv=fsync status=none`)
        const closed = await server('session', 'close', 'mydomain')
        t.equal(closed.exitCode, 11)
        t.match(closed.stderr, new RegExp(`${device} of disk sda was changed`))
      } finally {
        await virsh('detach-disk', 'mydomain', 'sda', '--config')
        await lab.source(['losetup', '-d', device], { reject: false })
      }
    },
  )

  t.test('"shut off" is not believed while a process has an image open, or QEMU runs', async t => {
    await using writer = lab.spawn('source', ['sh', '-c', `exec 3<>${VDA}; echo; read end`])
    await new Promise(resolve => writer.stdout.once('data', resolve))
    await refused(
      t,
      11,
      /disk vda of mydomain: .* \(pid \d+\) has .*mydomain-vda\.raw open/,
      /^look at it: ps \d+/,
    )
    writer.signal('SIGKILL')
    await writer.result
    const uuid = (await virsh('domuuid', 'mydomain')).stdout.trim()
    await using qemu = lab.spawn('source', ['sh', '-c', 'echo; read end', 'qemu', '-uuid', uuid])
    await new Promise(resolve => qemu.stdout.once('data', resolve))
    await refused(
      t,
      14,
      /libvirt says that mydomain is shut off, but its QEMU runs \(pid \d+\)/,
      /^do NOT start mydomain/,
    )
    qemu.signal('SIGKILL')
    await qemu.result
  })

  t.test('a serve that hangs holds up a start for its 15 seconds at most', async t => {
    await using reader = lab.spawn('source', [
      'sh',
      '-c',
      `mkdir -p /tmp/f; exec nbdfuse --connections=1 /tmp/f/disk '${NBD}'`,
    ])
    await waitFor('the session', 30, async () => (await server('status')).stdout.includes('frozen'))
    const inside = serve.process.pid
    // What brought it into the host stops with it, and goes on only when it is told to.
    const outside = inside === undefined ? undefined : readProcess(inside)?.parent
    if (inside === undefined || outside === undefined) throw new Error('serve is gone')
    signal(inside, 'SIGSTOP')
    const began = Date.now()
    await virsh('start', 'mydomain', '--paused')
    const took = Date.now() - began
    signal(inside, 'SIGCONT')
    signal(outside, 'SIGCONT')
    t.ok(took < HOOK_SECONDS * 1000, `the start took ${took} ms`)
    t.equal(await found(), '', 'its reader is gone all the same')
    await sh('source', 'fusermount3 -uz /tmp/f || true')
    reader.signal('SIGKILL')
    await reader.result
    await waitFor(
      'the journal to close',
      30,
      async () => (await journalSteps(lab)).at(-1) === 'done',
    )
    await virsh('destroy', 'mydomain')
  })

  t.test('a killed serve takes its reader with it; the hook lets the start go on', async t => {
    await using reader = lab.spawn('source', [
      'sh',
      '-c',
      `mkdir -p /tmp/f; exec nbdfuse --connections=1 /tmp/f/disk '${NBD}'`,
    ])
    await waitFor('the session', 30, async () => (await server('status')).stdout.includes('frozen'))
    serve.process.signal('SIGKILL')
    await serve.process.result
    await virsh('start', 'mydomain')
    t.equal(await found(), '', 'nobody reads any more when the start goes on')
    await sh('source', 'fusermount3 -uz /tmp/f || true')
    reader.signal('SIGKILL')
    await reader.result
    serve = await startServe(lab)
    await waitFor(
      'the journal to close',
      30,
      async () => (await journalSteps(lab)).at(-1) === 'done',
    )
    await waitFor('the guest agent', 90, agentAnswers)
    t.strictSame(await sourceFaults(lab), [])
  })

  t.test('a saved domain is refused: its disks go with memory that is not cloned', async t => {
    await virsh('managedsave', 'mydomain')
    await refused(
      t,
      75,
      /mydomain is saved \(virsh managedsave\)/,
      /^virsh start mydomain, then pull/,
    )
    await startGuest()
  })

  t.test(
    'a paused domain is frozen as it is: crash-consistent, unless that is not enough',
    async t => {
      await virsh('suspend', 'mydomain')
      t.equal(await consistencyOf(t), 'crash')
      t.match((await virsh('domstate', 'mydomain')).stdout, /paused/, 'it is left paused')
      await withConfig('quiesce: required')
      const before = await journalSteps(lab)
      await refused(t, 12, /mydomain could not be frozen: it is paused/, /^virsh resume mydomain/)
      t.strictSame(await journalSteps(lab), before, 'nothing was begun')
      await virsh('resume', 'mydomain')
      t.equal(await consistencyOf(t), 'quiesced', 'required, with an agent')
    },
  )

  t.test('each disk that is no plain disk of both definitions is left out or refused', async t => {
    await withConfig('')
    await sh(
      'source',
      `cd ${IMAGES} && truncate -s 16M extra.img medium.iso passing.raw && chmod 666 extra.img medium.iso passing.raw`,
    )
    const attach = (target: string, file: string, ...flags: string[]): Promise<CommandResult> =>
      virsh('attach-disk', 'mydomain', `${IMAGES}/${file}`, target, '--targetbus', 'usb', ...flags)
    const detach = (...flags: string[]): Promise<CommandResult> =>
      virsh('detach-disk', 'mydomain', 'sda', ...flags)

    await attach('sda', 'extra.img', '--live')
    await refused(
      t,
      11,
      /disk sda of mydomain: the running domain uses .*extra\.img, its definition says nothing/,
      /^make them equal/,
    )
    await detach('--live')
    await attach('sda', 'extra.img', '--config')
    await refused(
      t,
      11,
      /disk sda of mydomain is in its definition, but not in the running domain/,
      /^attach it/,
    )
    await detach('--config')

    for (const flags of [
      ['--mode', 'readonly'],
      ['--type', 'cdrom', '--mode', 'readonly'],
    ]) {
      await attach('sda', 'medium.iso', '--persistent', ...flags)
      t.equal(await consistencyOf(t), 'quiesced', `with a disk attached by ${flags.join(' ')}`)
      const { stdout } = await virsh('domblklist', 'mydomain')
      t.match(stdout, /sda +\/.*medium\.iso$/m, 'it is left as it is')
      await detach('--persistent')
    }
    await lab.writeFile('source', '/root/passing.xml', PASSING)
    await virsh('create', '--paused', '/root/passing.xml')
    await refused(t, 11, /passing is transient/, /virsh define/, 'passing')
    await virsh('destroy', 'passing')
  })

  t.test('what cannot be frozen is refused if it must be, and crash-consistent if not', async t => {
    await withConfig('quiesce: off')
    t.equal(await consistencyOf(t), 'crash', 'off, with an agent')
    await lab.guest(['sh', '-c', 'kill -9 $(cat /run/ga.pid)']).catch(() => undefined)
    await withConfig('quiesce: required')
    const before = await journalSteps(lab)
    const began = Date.now()
    await refused(
      t,
      12,
      /mydomain could not be frozen: .*agent is not connected/,
      /^start qemu-guest-agent/,
    )
    t.comment(`refused after ${Date.now() - began} ms`)
    t.strictSame(await journalSteps(lab), before, 'nothing was begun')
    t.strictSame(await sourceFaults(lab), [])
    t.equal(
      (await lab.source(['pgrep', '-f', '[n]bd-clone-dead-man'], { reject: false })).exitCode,
      1,
    )
    await withConfig('quiesce: auto')
    t.equal(await consistencyOf(t), 'crash', 'auto, without an agent')
  })
})
