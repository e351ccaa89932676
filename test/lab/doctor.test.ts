// doctor on a real source, with and without serve and libvirt; what serve tells a service manager; both programs with no
// more capabilities than their systemd units leave them.

import { readFileSync } from 'node:fs'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as delay } from 'node:timers/promises'
import t from 'tap'
import type { CommandResult } from './enter.ts'
import type { Lab } from './lab.ts'
import { waitFor } from './processes.ts'
import { IMAGES, Serve, sourceFaults, startServe, startWorld, untilOnBases } from './world.ts'
import { ROOT } from './names.ts'

t.setTimeout(800_000)

const WATCHDOG_SECONDS = 4

interface Finding {
  readonly about: string
  readonly check: string
  readonly verdict: string
  readonly found: string
}

async function doctor(
  lab: Lab,
  ...args: string[]
): Promise<{ exit: number; findings: Finding[]; of: (check: string) => Finding[] }> {
  const result = await lab.source(['clone-server', 'doctor', '--json', ...args], {
    reject: false,
    timeout: 60_000,
  })
  const { exit, findings } = JSON.parse(result.stdout) as { exit: number; findings: Finding[] }
  if (exit !== result.exitCode) throw new Error(`says ${exit}, exits with ${result.exitCode}`)
  return { exit, findings, of: check => findings.filter(one => one.check === check) }
}

const failed = (findings: readonly Finding[]): string[] =>
  findings.filter(one => one.verdict === 'fail').map(one => `${one.check}: ${one.found}`)

/** setpriv arguments that leave a program what its unit leaves it. */
function confined(unit: string): string[] {
  const file = path.join(ROOT, 'examples', 'systemd', unit)
  const text = readFileSync(file, 'utf8')
  const set = /^CapabilityBoundingSet=(.*)$/m.exec(text)?.[1]?.split(' ') ?? []
  const kept = set.map(name => `+${name.replace(/^CAP_/, '').toLowerCase()}`)
  if (kept.length === 0 || !/^NoNewPrivileges=yes$/m.test(text)) throw new Error(unit)
  return ['setpriv', `--bounding-set=-all,${kept.join(',')}`, '--no-new-privs', '--']
}

t.test('doctor and the service manager', async t => {
  const lab = await startWorld()
  t.teardown(() => lab[Symbol.asyncDispose]())
  const server = (...args: string[]): Promise<CommandResult> =>
    lab.source(['clone-server', ...args], { reject: false, timeout: 60_000 })
  const told: string[] = []

  t.test(
    'before serve was ever started, doctor warns of that only, and changes nothing',
    async t => {
      const { exit, findings, of } = await doctor(lab)
      t.strictSame(failed(findings), [])
      t.equal(exit, 0)
      t.match(of('serve'), [{ verdict: 'warn', found: /not running/ }])
      t.match(of('disks'), [
        { about: 'domain mydomain', verdict: 'pass', found: /vda: .*mydomain-vda\.raw, raw/ },
        { verdict: 'pass', found: /vdb: .*mydomain-vdb\.qcow2, qcow2/ },
      ])
      t.match(of('guest agent'), [{ verdict: 'pass', found: /answers/ }])
      t.match(of('access'), [{ verdict: 'pass', found: /QEMU \(user \d+\) can reach/ }])
      const made = await lab.source(['ls', '/var/lib/nbd-clone'], { reject: false })
      t.not(made.exitCode, 0, 'no directory was made')
      t.match(await server('doctor'), { exitCode: 0, stdout: /0 failed/ })
      t.match(await server('recover'), { exitCode: 10, stderr: /serve is not running/ })
    },
  )

  t.test('a wrong configuration is 2, a domain that is not listed 11', async t => {
    await lab.writeFile('source', '/tmp/bad.yaml', 'domains: { mydomain: { quiece: off } }\n')
    const bad = await doctor(lab, '--config', '/tmp/bad.yaml')
    t.equal(bad.exit, 2)
    t.match(bad.of('config'), [{ verdict: 'fail', found: /bad\.yaml:1: .*quiece: unknown key/ }])
    t.match(bad.of('node'), [{ verdict: 'pass' }])
    const other = await doctor(lab, 'otherdomain')
    t.equal(other.exit, 11)
    t.match(other.of('listed'), [{ about: 'domain otherdomain', verdict: 'fail' }])
  })

  let serve: Serve
  const signal = (name: string): Promise<CommandResult> =>
    lab.source(['sh', '-c', `kill -${name} $(cat /run/serve.pid)`])
  t.test(
    'serve tells the manager when it is ready, and what it does, with its unit’s capabilities',
    async t => {
      await lab.writeFile(
        'source',
        '/var/lib/notify-receiver.pl',
        readFileSync(path.join(ROOT, 'test', 'lab', 'notify-receiver.pl'), 'utf8'),
      )
      const manager = lab.spawn('source', [
        'perl',
        '/var/lib/notify-receiver.pl',
        '/run/notify.sock',
      ])
      createInterface(manager.stdout).on('line', line => {
        told.push(line)
      })
      await waitFor('the manager', 15, () => told.includes('LISTENING'))
      const argv = [
        ...['env', 'NOTIFY_SOCKET=/run/notify.sock', `WATCHDOG_USEC=${WATCHDOG_SECONDS}000000`],
        ...confined('clone-server.service'),
        ...['clone-server', 'serve', '--json', '--log-level', 'debug'],
      ]
      // nsenter stops itself with its child, and stays so: a shell stands between.
      const script = `${argv.join(' ')} & echo $! > /run/serve.pid; wait $!`
      serve = new Serve(lab.spawn('source', ['sh', '-c', script]))
      await waitFor('READY=1', 30, () => told.includes('READY=1'))
      t.equal((await server('status')).exitCode, 0, 'it answers when it says so')
      await waitFor('its status', 15, () => told.includes('STATUS=1 domain; no session'))

      t.match(await server('session', 'open', 'mydomain'), { exitCode: 0 })
      await waitFor('its status', 15, () => told.includes('STATUS=1 domain; frozen: mydomain'))
      const frozen = await doctor(lab)
      t.strictSame(failed(frozen.findings), [], 'a session is no fault')
      t.match(frozen.of('journals'), [{ verdict: 'pass', found: /mydomain is in a session/ }])
      t.match(await server('session', 'close', 'mydomain'), { exitCode: 0, stdout: /is merged/ })
      t.strictSame(await sourceFaults(lab), [])

      const pulled = await lab.standby(
        [...confined('clone-pull@.service'), 'clone', 'pull', 'mydomain'],
        {
          reject: false,
          timeout: 120_000,
        },
      )
      t.equal(pulled.exitCode, 0, pulled.stderr)
      t.strictSame(await sourceFaults(lab), [])
      t.strictSame(
        serve.log().filter(line => Number(line['level']) >= 40),
        [],
        'nothing to warn of',
      )
    },
  )

  t.test('the watchdog hears of serve as long as its loop goes round', async t => {
    const count = (): number => told.filter(line => line === 'WATCHDOG=1').length
    const seen = count()
    await waitFor('two signs of life', 3 * WATCHDOG_SECONDS, () => count() >= seen + 2)
    await signal('STOP')
    await delay(1000)
    const stopped = count()
    await delay(1500 * WATCHDOG_SECONDS)
    t.equal(count(), stopped, 'a serve that hangs says nothing')
    const hung = await doctor(lab)
    t.equal(hung.exit, 10)
    t.match(hung.of('serve'), [{ verdict: 'fail', found: /does not answer within 10 s/ }])
    await signal('CONT')
    await waitFor('a sign of life', 2 * WATCHDOG_SECONDS, () => count() > stopped)
  })

  t.test('a stop is told, asks for time, and merges first', async t => {
    t.match(await server('session', 'open', 'mydomain'), { exitCode: 0 })
    await signal('TERM')
    t.equal((await serve.process.result).exitCode, 0)
    t.strictSame(await sourceFaults(lab), [])
    await waitFor('STOPPING=1', 5, () => told.includes('STOPPING=1'))
    const after = told.slice(told.indexOf('STOPPING=1'))
    t.ok(after.some(line => line.startsWith('EXTEND_TIMEOUT_USEC=')))
    t.ok(after.some(line => /^STATUS=stopping; 1 domain; (frozen|merging): mydomain$/.test(line)))
  })

  t.test('what a killed serve leaves is named, and recover settles it for all domains', async t => {
    const killed = await startServe(lab)
    t.match(await server('session', 'open', 'mydomain'), { exitCode: 0 })
    killed.process.signal('SIGKILL')
    await killed.process.result
    const left = await doctor(lab)
    t.equal(left.exit, 14)
    t.match(left.of('journals'), [{ verdict: 'fail', found: /mydomain\.vda\..*nbd-clone\.qcow2/ }])
    const next = await startServe(lab)
    t.match(await server('recover'), {
      exitCode: 0,
      stdout: /^mydomain: (recovered|nothing to do)$/,
    })
    await untilOnBases(lab, 15)
    t.equal((await doctor(lab)).exit, 0)
    t.equal((await next.stop()).exitCode, 0)
  })

  t.test('an overlay that no journal names, and one that is not ours, are named', async t => {
    const orphan = `${IMAGES}/mydomain.vda.20200101T000000Z-0000.nbd-clone.qcow2`
    await lab.source(['touch', orphan])
    const found = await doctor(lab)
    t.equal(found.exit, 14)
    t.match(failed(found.findings), [new RegExp(`overlays: ${orphan}`)])
    await lab.source(['rm', orphan])

    const foreign = `${IMAGES}/admin.qcow2`
    await lab.source([
      ...['virsh', 'snapshot-create-as', 'mydomain', 'admin', '--disk-only', '--no-metadata'],
      ...['--diskspec', `vda,file=${foreign}`, '--diskspec', 'vdb,snapshot=no'],
    ])
    const admin = await doctor(lab)
    t.equal(admin.exit, 11)
    t.match(failed(admin.findings), [new RegExp(`disks: vda is on ${foreign}`)])
    await lab.source([
      ...['virsh', 'blockcommit', 'mydomain', 'vda', '--active', '--pivot', '--wait'],
    ])
    await lab.source(['rm', foreign])
    t.equal((await doctor(lab)).exit, 0)
  })

  t.test('without libvirt the rest is still looked at, and the domains are skipped', async t => {
    await lab.source(['sh', '-c', 'kill -9 $(cat /run/libvirtd.pid)'])
    const down = await doctor(lab)
    t.equal(down.exit, 11)
    t.match(failed(down.findings), [/^libvirt: libvirt does not answer: /])
    t.match(down.of('state dir'), [{ verdict: 'pass' }])
    t.match(down.of('disks'), [{ verdict: 'skip', found: 'libvirt does not answer' }])
    t.match(down.of('journals'), [{ verdict: 'pass' }])
    await lab.source(['libvirtd', '-d'])
    t.equal((await doctor(lab)).exit, 0)
  })
})
