// What doctor makes of what it finds: the judgements, as tables, without a host.

import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import t, { type Test } from 'tap'
import { renderDiagnosis } from '../server/commands/doctor.ts'
import { recoveredExit, recoveredJson, renderRecovered } from '../server/commands/recover.ts'
import { sourceSchema, domainSettings } from '../server/config/schema.ts'
import { judgeDisk } from '../server/doctor/disks.ts'
import { judgeAgent, judgeState, readDomainInfo } from '../server/doctor/domain.ts'
import { exitOf, fail, pass, runChecks, skip, warn } from '../server/doctor/finding.ts'
import { judgeNode, lookAtDirectory } from '../server/doctor/host.ts'
import {
  judgeJournals,
  judgeOverlays,
  overlayPartsOf,
  readJournals,
  type LeftoverFacts,
} from '../server/doctor/leftovers.ts'
import { judgeConfinement, judgeHook, readSecurity } from '../server/doctor/libvirt.ts'
import { bugsOf, isOlder, judgeNbdServer, NBD_SERVER_BUGS } from '../server/doctor/nbd-server.ts'
import {
  judgeAppArmorPlace,
  judgeAutostart,
  judgeSpace,
  mountOf,
} from '../server/doctor/overlay-directory.ts'
import { askForStatus, judgeServe } from '../server/doctor/serve.ts'
import type { DomainDisk } from '../server/libvirt/domain-xml.ts'
import { recordStep, startJournal, type Journal } from '../server/session/journal.ts'
import { Failure } from '../shared/failures.ts'
import { ROOT } from './lab/names.ts'

const temporary = (t: Test): string => {
  const directory = mkdtempSync(path.join(tmpdir(), 'nbd-clone-test-'))
  t.teardown(() => rmSync(directory, { recursive: true, force: true }))
  return directory
}

t.test('the exit status is 0 without a fail, 2 for the configuration, else the worst', async t => {
  const of = (...outcomes: ReturnType<typeof pass>[]): number =>
    exitOf(outcomes.map(one => ({ about: 'host', check: 'x', ...one })))
  t.equal(of(), 0)
  t.equal(of(pass('x'), warn('x', 'y'), skip('x')), 0)
  t.equal(of(fail('x', 'y')), 11)
  t.equal(of(fail('x', 'y'), fail('x', 'y', 'SPACE')), 22)
  t.equal(of(fail('x', 'y', 'SPACE'), fail('x', 'y', 'NEEDS_OPERATOR')), 14)
  t.equal(of(fail('x', 'y', 'NEEDS_OPERATOR'), fail('x', 'y', 'USAGE')), 2)
})

t.test('a check that breaks is a finding, and the others are still there', async t => {
  const findings = await runChecks(
    'host',
    [
      { check: 'good', look: () => pass('fine') },
      {
        check: 'bad',
        look: () => {
          throw new Failure('SOURCE_REFUSED', 'broken', { remedy: 'mend it' })
        },
      },
      { check: 'two', look: () => [pass('one'), warn('two', 'do')] },
    ],
    {},
  )
  t.match(findings, [
    { check: 'good', verdict: 'pass' },
    { check: 'bad', verdict: 'fail', found: 'broken', remedy: 'mend it', code: 'SOURCE_REFUSED' },
    { check: 'two', verdict: 'pass' },
    { check: 'two', verdict: 'warn' },
  ])
})

t.test('people read aligned lines, the remedy below, and the sum at the end', async t => {
  const text = renderDiagnosis({
    exit: 11,
    findings: [
      { about: 'host', check: 'node', ...pass('20.20.2') },
      { about: 'host', check: 'programs', ...fail('virsh is not installed', 'apt-get install x') },
      { about: 'domain web', check: 'disks', ...skip('libvirt does not answer') },
    ],
  })
  t.equal(
    text,
    `host
  pass  node      20.20.2
  fail  programs  virsh is not installed
                  -> apt-get install x
domain web
  skip  disks     libvirt does not answer

1 passed, 0 to look at, 1 failed, 1 skipped (exit 11)`,
  )
})

t.test('Node is compared by numbers', async t => {
  t.equal(judgeNode('20.19.0').verdict, 'pass')
  t.equal(judgeNode('22.3.0').verdict, 'pass')
  t.equal(judgeNode('20.9.0').verdict, 'fail')
  t.equal(judgeNode('18.20.4').verdict, 'fail')
  t.ok(isOlder([3, 9], [3, 24]))
  t.notOk(isOlder([12, 1, 0], [12, 1]))
})

t.test('bugs of nbd-server are told by version, and whether they matter to serve', async t => {
  const said = (version: string): string => `This is nbd-server version ${version}\n`
  const numbers = (version: number[], glib?: number[]): string[] =>
    bugsOf(version, glib).flatMap(({ bug }) => /#\d+|CVE-\d+-\d+/.exec(bug)?.[0] ?? [])
  t.ok(numbers([3, 23], [2, 70]).includes('CVE-2022-26495'))
  t.notOk(numbers([3, 24], [2, 74]).includes('CVE-2022-26495'))
  t.ok(numbers([3, 24], [2, 74]).includes('#102'))
  t.notOk(numbers([3, 25], [2, 74]).includes('#102'))
  t.notOk(numbers([3, 24], [2, 74]).includes('#146'), 'an older GLib does not show it')
  t.ok(numbers([3, 24], [2, 76]).includes('#146'))
  t.ok(numbers([3, 26], [2, 80]).includes('#173'))
  t.notOk(numbers([3, 27], [2, 80]).includes('#173'))
  t.ok(numbers([3, 27, 1], [2, 80]).includes('#182'))
  t.notOk(numbers([3, 26, 1], [2, 80]).includes('#182'))

  t.match(judgeNbdServer(said('3.24'), [2, 74, 6], false), {
    verdict: 'pass',
    notes: [/^no harm: SIGHUP/],
  })
  t.match(judgeNbdServer(said('3.24'), [2, 78], false), { verdict: 'warn', remedy: /3\.25/ })
  t.match(judgeNbdServer(said('3.23'), [2, 74], false), { verdict: 'fail', remedy: /3\.24/ })
  t.match(judgeNbdServer(said('3.24'), [2, 74], true), { verdict: 'warn', found: /classic daemon/ })
  t.match(judgeNbdServer(said('3.26.1'), [2, 80], false).verdict, 'pass')
  t.match(judgeNbdServer('nonsense', undefined, false).verdict, 'warn')
})

t.test('docs/running.md has the table of bugs', async t => {
  const page = readFileSync(path.join(ROOT, 'docs', 'running.md'), 'utf8')
  const rows = page
    .split("## nbd-server's known bugs\n")[1]
    ?.split('\n## ')[0]
    ?.split('\n')
    .filter(line => line.startsWith('| '))
    .slice(2)
    .map(line =>
      line
        .split('|')
        .slice(1, -1)
        .map(cell => cell.trim()),
    )
  t.strictSame(
    rows?.map(([bug, versions, serve, classic]) => [bug, versions, serve, classic]),
    NBD_SERVER_BUGS.map(({ bug, since, fixedIn, serve, why, classic }) => [
      bug,
      since ? `${since.join('.')} and newer` : fixedIn ? `before ${fixedIn.join('.')}` : 'all',
      `${{ nothing: 'no harm', careful: 'know it', unsafe: 'UNSAFE' }[serve]}: ${why}`,
      classic ?? 'the same',
    ]),
  )
})

t.test('AppArmor is a trap only where libvirt uses it and is older than 12.1.0', async t => {
  const judge = (models: string[], daemon: string) =>
    judgeConfinement({ models, daemon, apparmor: true })
  t.match(judge(['apparmor', 'dac'], '9.0.0'), { verdict: 'warn', found: /Permission denied/ })
  t.equal(judge(['apparmor', 'dac'], '12.0.0').verdict, 'warn')
  t.equal(judge(['apparmor', 'dac'], '12.1.0').verdict, 'pass')
  t.match(judge(['none', 'dac'], '9.0.0'), { verdict: 'pass', found: /does not use it/ })
  t.equal(judgeConfinement({ models: [], apparmor: true, unreachable: 'x' }).verdict, 'skip')
  t.strictSame(
    readSecurity(
      `<capabilities><host><secmodel><model>apparmor</model><doi>0</doi></secmodel><secmodel><model>dac</model>
       <baselabel type='kvm'>+64055:+105</baselabel></secmodel></host></capabilities>`,
    ),
    { models: ['apparmor', 'dac'], qemuUser: { uid: 64055, gid: 105 } },
  )
  t.equal(judgeAppArmorPlace('/srv/overlays', ['apparmor']).verdict, 'pass')
  t.equal(judgeAppArmorPlace('/etc/overlays', ['apparmor']).verdict, 'fail')
  t.equal(judgeAppArmorPlace('/etcetera', ['apparmor']).verdict, 'pass')
  t.equal(judgeAppArmorPlace('/etc/overlays', ['dac']).verdict, 'pass')
})

t.test('the start hook is judged by the rule that a pull is judged by', async t => {
  const facts = { models: [], apparmor: false }
  const fault = { reason: 'there is no hook', remedy: ['clone-server config libvirt-hook'] }
  t.match(judgeHook({ ...facts, hookFault: fault }), {
    verdict: 'warn',
    found: /there is no hook/,
    remedy: /config libvirt-hook/,
  })
  t.equal(judgeHook(facts).verdict, 'pass')
  t.equal(judgeHook({ ...facts, unreachable: 'no answer' }).verdict, 'skip')
})
const web = domainSettings(
  sourceSchema.parse({ domains: { web: { disks: { vdx: { exclude: true } } } } }),
  'web',
)
const disk = (over: Partial<DomainDisk> = {}): DomainDisk => ({
  target: 'vda',
  device: 'disk',
  type: 'file',
  source: '/images/vda.raw',
  driver: 'raw',
  readOnly: false,
  shareable: false,
  transient: false,
  encrypted: false,
  hasBacking: false,
  hasJob: false,
  ...over,
})

t.test('each disk is exported, left out, or refused with its file and the remedy', async t => {
  const judge = (one: DomainDisk, saved: DomainDisk | undefined = one) =>
    judgeDisk({ domain: 'web', settings: web }, one, saved)
  t.match(judge(disk()), { export: { target: 'vda', base: '/images/vda.raw', format: 'raw' } })
  t.match(judge(disk({ device: 'cdrom' })), { verdict: 'pass', found: /left out/ })
  t.match(judge(disk({ target: 'vdx', type: 'network' })), { verdict: 'pass', found: /excluded/ })
  t.match(judge(disk({ type: 'network', source: undefined })), {
    verdict: 'fail',
    found: /^vda: .*network/,
  })
  t.match(judge(disk({ source: '/images/vda.admin', driver: 'qcow2', hasBacking: true })), {
    verdict: 'fail',
    code: 'SOURCE_REFUSED',
    found: /vda is on \/images\/vda\.admin/,
    remedy: /blockpull/,
  })
  const ours = '/images/web.vda.20261120T030007Z-4f2a.nbd-clone.qcow2'
  t.match(judge(disk({ source: ours, driver: 'qcow2', hasBacking: true })), {
    verdict: 'fail',
    code: 'NEEDS_OPERATOR',
    remedy: /recover web --merge-overlays vda/,
  })
  t.match(judge(disk(), disk({ source: '/images/other.raw' })), {
    verdict: 'fail',
    found: /its definition \/images\/other\.raw/,
  })
})

t.test('a guest agent is needed where quiesce is required, wanted where it is auto', async t => {
  const missing = { reason: 'QEMU guest agent is not connected' }
  t.equal(judgeAgent('required', missing, 'web').verdict, 'fail')
  t.equal(judgeAgent('auto', missing, 'web').verdict, 'warn')
  t.equal(judgeAgent('required', { status: 'thawed' }, 'web').verdict, 'pass')
  t.match(judgeAgent('auto', { status: 'frozen' }, 'web'), {
    verdict: 'fail',
    code: 'NEEDS_OPERATOR',
    remedy: /domfsthaw web/,
  })
})

t.test('the state of a domain, with and without the start hook', async t => {
  t.equal(judgeState('running', 'web', false).verdict, 'pass')
  t.equal(judgeState('paused', 'web', true).verdict, 'warn')
  t.equal(judgeState('shut off', 'web', true).verdict, 'pass')
  t.match(judgeState('shut off', 'web', false), { verdict: 'warn', remedy: /virsh start web/ })
  t.strictSame(
    readDomainInfo(
      'Id:             1\nName: web\nState:          shut off\nPersistent:     yes\nAutostart:      enable\nManaged save:   no\n',
    ),
    { state: 'shut off', persistent: true, autostart: true, managedSave: false },
  )
})

t.test('space is counted above the reserved tenth', async t => {
  const GIB = 1024 ** 3
  t.match(judgeSpace('/o', 0.5 * GIB, 100 * GIB, '20%'), { verdict: 'fail', code: 'SPACE' })
  t.equal(
    judgeSpace('/o', 2 * GIB, 100 * GIB, '20%').verdict,
    'warn',
    'enough to begin, not for a fifth',
  )
  t.equal(judgeSpace('/o', 30 * GIB, 100 * GIB, '20%').verdict, 'pass')
  t.equal(judgeSpace('/o', GIB, undefined, '20%').verdict, 'skip')
  t.match(judgeSpace('/o', -GIB, undefined, '20%'), { verdict: 'fail', found: /nothing is free/ })
})

t.test('autostart wants the overlays mounted before libvirt starts', async t => {
  const mounts = [
    '22 1 8:1 / / rw - ext4 /dev/sda1 rw',
    '30 22 8:2 / /srv rw - xfs /dev/sdb1 rw',
    '31 30 8:3 / /srv/my\\040overlays rw - xfs /dev/sdc1 rw',
  ].join('\n')
  t.equal(mountOf(mounts, '/srvx').point, '/')
  t.equal(mountOf(mounts, '/srv/images/a').point, '/srv')
  t.equal(mountOf(mounts, '/srv/my overlays').point, '/srv/my overlays')
  const srv = mountOf(mounts, '/srv/images')
  t.equal(judgeAutostart(false, srv, '').verdict, 'pass')
  t.equal(judgeAutostart(true, { point: '/', source: '' }, '').verdict, 'pass')
  t.equal(judgeAutostart(true, srv, '/dev/sdb1 /srv xfs defaults 0 2').verdict, 'pass')
  t.equal(judgeAutostart(true, srv, '/dev/sdb1 /srv xfs defaults,nofail 0 2').verdict, 'warn')
  t.equal(judgeAutostart(true, srv, '# /dev/sdb1 /srv xfs defaults 0 2').verdict, 'warn')
})

t.test('directories: owner, mode, and never in memory for the state', async t => {
  const directory = temporary(t)
  mkdirSync(path.join(directory, 'open'), { mode: 0o777 })
  t.match(await lookAtDirectory(path.join(directory, 'none'), false), { verdict: 'pass' })
  t.match(await lookAtDirectory('/dev/shm', false), { verdict: 'fail', found: /in memory/ })
  writeFileSync(path.join(directory, 'file'), '')
  t.match(await lookAtDirectory(path.join(directory, 'file'), true), { verdict: 'fail' })
  const before = process.umask(0)
  mkdirSync(path.join(directory, 'wide'), { mode: 0o777 })
  process.umask(before)
  t.match(await lookAtDirectory(path.join(directory, 'wide'), true), { verdict: 'warn' })
})

const RECORD = {
  session: 's',
  domain: 'web',
  uuid: 'u',
  recoveryPoint: '20261120T030007Z-4f2a',
  instant: new Date().toISOString(),
  disks: [
    {
      target: 'vda',
      format: 'raw',
      base: '/images/vda.raw',
      baseType: 'file',
      overlay: '/images/web.vda.20261120T030007Z-4f2a.nbd-clone.qcow2',
    },
  ],
  inactiveXml: '<domain/>',
  liveXml: '<domain/>',
} as const
const OVERLAY = RECORD.disks[0].overlay

t.test('an open journal is in order in a session, and a task without serve', async t => {
  const directory = temporary(t)
  const start = (): Promise<Journal> =>
    startJournal(directory, { ...RECORD, disks: [...RECORD.disks] })
  const facts = async (serve: LeftoverFacts['serve']): Promise<LeftoverFacts> => ({
    journals: await readJournals(directory),
    overlays: [OVERLAY],
    serve,
  })
  const running = (state: 'frozen' | 'idle' | 'unsettled'): LeftoverFacts['serve'] => ({
    kind: 'running',
    domains: [
      { domain: 'web', state, holders: [], connections: 0, members: [], disks: [], refusals: [] },
    ],
  })
  const open = await start()
  const down = await facts({ kind: 'not running' })
  t.match(judgeJournals(down), [{ verdict: 'fail', code: 'NEEDS_OPERATOR', found: OVERLAY }])
  t.match(judgeOverlays(down), [{ verdict: 'pass' }], 'an open journal names it')
  t.match(judgeJournals(await facts(running('frozen'))), [{ verdict: 'pass' }])
  t.match(judgeJournals(await facts(running('unsettled'))), [{ verdict: 'warn' }])
  await recordStep(open, 'needs operator', { reason: 'two bases' })
  t.match(judgeJournals(await facts(running('idle'))), [
    { verdict: 'fail', code: 'NEEDS_OPERATOR', found: /two bases/, remedy: /recover web/ },
  ])

  await recordStep(await start(), 'done')
  t.match(judgeJournals(await facts(running('idle'))), [{ verdict: 'pass' }])
  t.match(judgeOverlays(await facts(running('idle'))), [
    { verdict: 'fail', code: 'NEEDS_OPERATOR', remedy: /do not delete/ },
  ])
  await recordStep(await recordStep(await start(), 'clean', { target: 'vda' }), 'done')
  t.match(judgeOverlays(await facts(running('idle'))), [
    { verdict: 'warn', found: /holds nothing any more/ },
  ])
  writeFileSync(path.join(directory, 'web.journal'), 'no journal\n')
  t.match(judgeJournals(await facts(running('idle'))), [
    { verdict: 'fail', code: 'NEEDS_OPERATOR' },
  ])
})

t.test('overlays of ours are known by their names, with dots in any part', async t => {
  t.strictSame(overlayPartsOf('/x/my.domain.vda.20261120T030007Z-4f2a.nbd-clone.qcow2'), {
    domain: 'my.domain',
    target: 'vda',
    recoveryPoint: '20261120T030007Z-4f2a',
  })
  t.equal(overlayPartsOf('/x/mydomain.admin.qcow2'), undefined)
})

t.test('a serve that does not run is a warning, one that hangs is a fail', async t => {
  const directory = temporary(t)
  const socket = path.join(directory, 'serve.sock')
  t.match(judgeServe(await askForStatus(socket)), { verdict: 'warn' })
  const mute = createServer(() => undefined)
  await new Promise<void>(resolve => mute.listen(socket, resolve))
  t.teardown(() => mute.close())
  t.match(judgeServe(await askForStatus(socket, 200)), {
    verdict: 'fail',
    code: 'SOURCE_UNREACHABLE',
    found: /does not answer within 0.2 s/,
  })
})

t.test('recover of all domains reports each and exits with the worst', async t => {
  const refused = new Failure('SOURCE_REFUSED', 'no')
  const stuck = new Failure('MERGE_FAILED', 'stuck')
  const recovered = [
    { domain: 'a', result: 'recovered' as const },
    { domain: 'b', result: refused },
    { domain: 'c', result: stuck },
  ]
  t.equal(recoveredExit(recovered), 13)
  t.equal(recoveredExit([]), 0)
  t.equal(
    renderRecovered(recovered),
    'a: recovered\nb: not recovered (exit 11)\nc: not recovered (exit 13)',
  )
  t.match(renderRecovered([]), /nothing to do/)
  t.match(recoveredJson(recovered), {
    exit: 13,
    domains: [{ domain: 'a', result: 'recovered' }, { failure: { code: 'SOURCE_REFUSED' } }, {}],
  })
})
