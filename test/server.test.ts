// The source's pure parts: configuration, generated nbd-server configuration, domain XML, journal.

import { execFileSync } from 'node:child_process'
import { appendFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { parseConfig } from '../shared/config.ts'
import { Failure } from '../shared/failures.ts'
import { sourcePaths } from '../server/config/paths.ts'
import {
  domainSettings,
  effectiveSettings,
  formatSetting,
  sourceSchema,
} from '../server/config/schema.ts'
import { statusTable } from '../server/commands/status.ts'
import { showDomain } from '../server/commands/config.ts'
import { exportability, readDomainXml, type DomainDisk } from '../server/libvirt/domain-xml.ts'
import { snapshotArguments } from '../server/libvirt/snapshot.ts'
import { connectionConfig, sectionsOf } from '../server/nbd-server/config.ts'
import { parseSockets, peerOf } from '../server/nbd-server/peers.ts'
import { parseAccount } from '../server/nbd-server/traffic.ts'
import type { DomainStatus } from '../server/serve/words.ts'
import {
  isOpen,
  journalFile,
  mendJournal,
  readJournal,
  recordStep,
  startJournal,
} from '../server/session/journal.ts'
import { createLease, lapseOf } from '../server/session/lease.ts'
import {
  isStalled,
  overlayLimit,
  roomNeeded,
  withSample,
  type Sample,
} from '../server/session/limits.ts'
import { shareOf } from '../shared/quantities.ts'

const temporary = (t: { teardown: (undo: () => void) => void }): string => {
  const directory = mkdtempSync(path.join(tmpdir(), 'nbd-clone-test-'))
  t.teardown(() => rmSync(directory, { recursive: true, force: true }))
  return directory
}

t.test('what is wrong in source.yaml is told with file, line, key and reason', async t => {
  const wrong: [yaml: string, message: RegExp][] = [
    ['domains:\n  web: { quiece: auto }', /^source.yaml:2: domains.web.quiece: unknown key$/],
    ['domains: { web: { quiesce: maybe } }', /domains.web.quiesce: .*required.*auto.*off/],
    ['domains: { "../x": {} }', /domains\.\.\.\/x: .*name is 1 to 100/],
    ['defaults: { overlayDir: images }', /defaults.overlayDir: a path here is absolute/],
    ['defaults: { session: { maxAge: 6 } }', /defaults.session.maxAge: /],
    ['defaults: { session: { maxAge: soon } }', /a duration is a number with ms, s, m, h, d or w/],
    [
      'listen: { tcp: { host: 0.0.0.0 } }',
      /listen.tcp: NBD over plain TCP is neither encrypted nor authenticated/,
    ],
    [
      'listen: { tls: { host: 0.0.0.0, cert: /c.pem } }',
      /listen.tls: your own certificates are ca, cert and key together/,
    ],
    ['listen: { tls: { host: 0.0.0.0, crl: /c.pem } }', /listen.tls: your own certificates are/],
    ['defaults: { overlay: { max: 120% } }', /defaults.overlay.max: a share is a percentage/],
    ['defaults: { overlay: { reserve: -1% } }', /a share is a percentage from 0% to 100%, or a/],
    [
      'defaults: { hashing: { processors: all } }',
      /defaults.hashing.processors: half .*, or a number/,
    ],
    ['defaults: { hashing: { rate: 1KiB/s } }', /defaults.hashing.rate: a rate is .* 8 MiB/],
    ['defaults: { session: { floor: 64KB } }', /defaults.session.floor: a size is a number/],
    ['domains: [web]', /domains: .*expected record/i],
    ['domains: {', /^source.yaml:\d+: not valid YAML/],
  ]
  for (const [yaml, message] of wrong)
    t.throws(() => parseConfig('source.yaml', yaml, sourceSchema), { code: 'USAGE', message }, yaml)
  t.match(
    parseConfig('source.yaml', 'listen: { tcp: { host: 127.0.0.1 } }', sourceSchema).listen.tcp,
    { port: 10809 },
  )
})

t.test(
  'certificates are those beside the configuration, or your own, with your list or none',
  async t => {
    const of = (tls: string) =>
      sourcePaths(
        parseConfig('source.yaml', `listen: { tls: { host: '::', ${tls} } }`, sourceSchema),
        '/etc/nbd-clone/source.yaml',
      ).tls
    t.strictSame(of(''), {
      ca: '/etc/nbd-clone/tls/ca-cert.pem',
      cert: '/etc/nbd-clone/tls/server-cert.pem',
      key: '/etc/nbd-clone/tls/server-key.pem',
      crl: '/etc/nbd-clone/tls/ca-crl.pem',
    })
    const own = { ca: '/a.pem', cert: '/c.pem', key: '/k.pem' }
    t.strictSame(of('ca: /a.pem, cert: /c.pem, key: /k.pem'), { ...own, crl: undefined })
  },
)

t.test('effective settings come from the nearest layer and remember it', async t => {
  const config = parseConfig(
    'source.yaml',
    `
defaults: { quiesce: auto, session: { maxAge: 1h } }
groups: { db: { quiesce: required } }
domains: { web: { group: db, overlayDir: /srv/overlays, disks: { vdb: { exclude: true } } } }`,
    sourceSchema,
  )
  t.match(domainSettings(config, 'web'), {
    quiesce: 'required',
    overlayDir: '/srv/overlays',
    session: { maxAge: 3600_000 },
    freezeDeadline: 10_000,
    disks: { vdb: { exclude: true } },
  })
  t.match(effectiveSettings(config, 'web').origins, {
    quiesce: 'groups.db',
    overlayDir: 'domains.web',
    'session.maxAge': 'defaults',
    freezeDeadline: 'built-in',
  })
  t.ok(showDomain(config, 'web').some(row => row.key === 'disks.vdb.exclude' && row.value === true))
  t.throws(() => domainSettings(config, 'other'), {
    code: 'SOURCE_REFUSED',
    message: /other is not exported/,
  })
  t.throws(() => domainSettings(config, 'constructor'), { code: 'SOURCE_REFUSED' })
})

t.test(
  'a generated nbd-server configuration holds one section per export, with hooks that cannot be misread',
  async t => {
    const link = (target: string): string => `/run/nbd-clone/exports/c1/web/${target}`
    const sections = sectionsOf('web', ['vda', 'vdb'], ['0123'], link)
    t.strictSame(
      sections.map(one => one.name),
      ['web/vda', 'web/vdb', 'web/vda@0123', 'web/vdb@0123'],
    )
    t.strictSame(
      sectionsOf('web', ['vda'], [], link).map(one => one.name),
      ['web/vda', 'web'],
      'a single disk by its domain alone',
    )
    const text = connectionConfig('c1', '/run/nbd-clone/serve.sock', sections)
    t.match(text, /^\[generic\]\nport = 0\nallowlist = false\n/)
    t.notMatch(text, /[%\\]/, 'nbd-server would read them as a format or an escape')
    const hooks = text.split('\n').filter(line => /^(pre|post)run = /.test(line))
    t.equal(hooks.length, 8)
    for (const hook of hooks) t.match(hook, /^(pre|post)run = exec '\/.* <\/dev\/null$/)
    t.equal(text.split('\n').filter(line => line === 'readonly = true').length, 4)
  },
)

t.test('no name that is allowed can add a word to a hook line', async () => {
  const allowed = fc.stringMatching(/^[A-Za-z0-9_][A-Za-z0-9_.+:@-]{0,99}$/)
  fc.assert(
    fc.property(allowed, allowed, (domain, target) => {
      const [section] = sectionsOf(domain, [target], [], () => '/run/x')
      const text = connectionConfig('c1', '/run/s', section ? [section] : [])
      const line = /^prerun = exec (.*) <\/dev\/null$/m.exec(text)?.[1] ?? ''
      const words = execFileSync('/bin/sh', ['-c', `printf '%s\\n' ${line}`], {
        encoding: 'utf8',
      }).split('\n')
      return (
        words[words.indexOf('--domain') + 1] === domain &&
        words[words.indexOf('--target') + 1] === target &&
        words.length === 15
      )
    }),
    { numRuns: 50, seed: 1 },
  )
})

const disk: DomainDisk = {
  target: 'vda',
  device: 'disk',
  type: 'file',
  source: '/images/a.raw',
  driver: 'raw',
  readOnly: false,
  shareable: false,
  transient: false,
  encrypted: false,
  hasBacking: false,
  hasJob: false,
}

t.test(
  'each kind of disk is exported, left as it is, or refused with reason and remedy',
  async t => {
    const table: [change: Partial<DomainDisk>, kind: string, reason?: RegExp][] = [
      [{}, 'export'],
      [{ driver: 'qcow2', type: 'block' }, 'export'],
      [{ device: 'cdrom' }, 'leave', /cdrom/],
      [{ device: 'floppy', source: undefined }, 'leave', /floppy/],
      [{ readOnly: true }, 'leave', /read-only/],
      [{ device: 'lun', type: 'block' }, 'refuse', /SCSI LUN/],
      [{ type: 'network', source: undefined }, 'refuse', /type network/],
      [{ type: 'volume', source: undefined }, 'refuse', /type volume/],
      [{ source: undefined }, 'refuse', /no source/],
      [{ shareable: true }, 'refuse', /shareable/],
      [{ transient: true }, 'refuse', /transient/],
      [{ encrypted: true }, 'refuse', /encrypted/],
      [{ driver: 'vmdk' }, 'refuse', /format vmdk/],
      [{ hasBacking: true, driver: 'qcow2' }, 'refuse', /backing file/],
    ]
    for (const [change, kind, reason] of table) {
      const verdict = exportability('web', { ...disk, ...change }, false)
      t.equal(verdict.kind, kind, JSON.stringify(change))
      if (verdict.kind !== 'export') t.match(verdict.reason, reason ?? /./)
      if (verdict.kind === 'refuse') t.match(verdict.remedy, /web/)
      t.equal(exportability('web', { ...disk, ...change }, true).kind, 'leave', 'excluded')
    }
  },
)

const xml = (devices: string): string =>
  `<domain type='kvm'><name>web</name><uuid>03f5f220-aed9-4ab6-9892-5674034508c3</uuid><os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os><devices>${devices}</devices></domain>`

t.test('domain XML is read as a tree', async t => {
  const read = readDomainXml(
    xml(`
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/i/a b&amp;c.qcow2' index='2'/>
      <backingStore type='file'><format type='raw'/><source file='/i/base.raw'/></backingStore><target dev='vda' bus='virtio'/></disk>
    <disk type='block' device='disk'><driver type='raw'/><source dev='/dev/vg/lv'/><backingStore/><target dev='vdb'/><shareable/></disk>
    <disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>
    <interface type='network'><source network='default'/></interface><interface type='network'><source network='default'/></interface>`),
  )
  t.match(read, { name: 'web', arch: 'x86_64', machine: 'pc-q35-7.2', networks: ['default'] })
  t.match(read.disks[0], {
    target: 'vda',
    source: '/i/a b&c.qcow2',
    driver: 'qcow2',
    hasBacking: true,
  })
  t.match(read.disks[1], {
    target: 'vdb',
    source: '/dev/vg/lv',
    hasBacking: false,
    shareable: true,
  })
  t.match(read.disks[2], { target: 'sda', device: 'cdrom', source: undefined, readOnly: true })
})

t.test('hostile domain XML is refused', async t => {
  const refused = { code: 'SOURCE_REFUSED', message: /domain XML refused/ }
  t.throws(() => readDomainXml('<!DOCTYPE d [<!ENTITY a "b">]><domain/>'), refused)
  t.throws(() => readDomainXml('<domain><name>'), refused)
  t.throws(() => readDomainXml('<pool/>'), refused)
  t.throws(() => readDomainXml(xml("<disk><target dev='../../etc'/></disk>")), refused)
  t.throws(() => readDomainXml(xml(' '.repeat(4 * 1024 * 1024))), refused)
  fc.assert(
    fc.property(fc.string(), text => {
      try {
        readDomainXml(text)
        return false
      } catch (error) {
        return error instanceof Failure && error.code === 'SOURCE_REFUSED'
      }
    }),
    { numRuns: 300, seed: 1 },
  )
})

t.test('a snapshot names every disk, and a comma in a path is doubled', async t => {
  t.strictSame(
    snapshotArguments('web', 'p', [
      { target: 'vda', overlay: '/i/a,b.qcow2' },
      { target: 'sda', overlay: undefined },
    ]).slice(-4),
    [
      '--diskspec',
      'vda,snapshot=external,driver=qcow2,file=/i/a,,b.qcow2',
      '--diskspec',
      'sda,snapshot=no',
    ],
  )
})

const intent = {
  session: 's',
  domain: 'web',
  uuid: 'u',
  recoveryPoint: '20261120T030007Z-4f2a',
  instant: '2026-11-20T03:00:07.000Z',
  disks: [
    {
      target: 'vda',
      format: 'raw' as const,
      base: '/i/a',
      baseType: 'file' as const,
      overlay: '/i/o',
    },
  ],
  inactiveXml: '<domain/>',
  liveXml: '<domain/>',
}

t.test('a journal is open until it is done, and a torn last line was not begun', async t => {
  const directory = temporary(t)
  t.equal(await readJournal(directory, 'web'), undefined)
  let journal = await startJournal(directory, intent)
  journal = await recordStep(journal, 'snapshot')
  t.ok(isOpen(journal))
  appendFileSync(journalFile(directory, 'web'), '{"step":"do')
  const torn = await readJournal(directory, 'web')
  t.strictSame(
    torn?.entries.map(one => one.step),
    ['snapshot'],
  )
  t.ok(torn && isOpen(torn))
  await mendJournal(directory, 'web')
  if (torn) await recordStep(torn, 'done')
  const done = await readJournal(directory, 'web')
  t.strictSame(
    done?.entries.map(one => one.step),
    ['snapshot', 'done'],
    'appending after a torn line is safe',
  )
  t.notOk(done && isOpen(done))
  t.match(readFileSync(journalFile(directory, 'web'), 'utf8'), /^\{"step":"intent"/)
})

t.test('a journal that cannot be read needs an operator, who is told what to do', async t => {
  const directory = temporary(t)
  writeFileSync(journalFile(directory, 'web'), 'nonsense\n')
  await t.rejects(readJournal(directory, 'web'), {
    code: 'NEEDS_OPERATOR',
    message: /web\.journal cannot be read/,
  })
})

t.test('limits are told as they are written', async t => {
  const config = parseConfig(
    'source.yaml',
    'domains: { web: { overlay: { max: 8MiB, reserve: 2.5% }, session: { floor: 0 } } }',
    sourceSchema,
  )
  t.match(domainSettings(config, 'web'), {
    overlay: { max: 8 * 1024 ** 2, reserve: '2.5%' },
    session: { maxAge: 6 * 3600_000, stall: 60_000, floor: 0 },
  })
  const shown = showDomain(config, 'web').map(
    ({ key, value }) => `${key} ${formatSetting(key, value)}`,
  )
  for (const line of ['overlay.max 8 MiB', 'overlay.reserve 2.5%', 'session.stall 1m 0s'])
    t.ok(shown.includes(line), line)
})

const GIB = 1024 ** 3

t.test('an overlay may take a share of its base, or a size, and a small base is no reason', t => {
  t.equal(shareOf('20%', 1000), 200)
  t.equal(shareOf(4096, 1000), 4096)
  t.equal(overlayLimit('20%', 100 * GIB), 20 * GIB)
  t.equal(overlayLimit('20%', GIB), GIB, 'never judged below 1 GiB')
  t.equal(overlayLimit(4096, 100 * GIB), 4096, 'unless a size says so')
  t.equal(roomNeeded('20%', 100 * GIB), GIB)
  t.equal(roomNeeded('20%', GIB), shareOf('20%', GIB))
  t.end()
})

/** Samples a second apart; `moved` bytes in each second. */
function sampled(moved: readonly number[], stall: number): Sample[] {
  let samples: Sample[] = [{ at: 0, moved: 0 }]
  let total = 0
  moved.forEach((bytes, second) => {
    total += bytes
    samples = withSample(samples, { at: (second + 1) * 1000, moved: total }, stall)
  })
  return samples
}

t.test('a session has stalled when the average over the whole window is below the floor', t => {
  const seconds = (count: number, bytes: number): number[] => Array<number>(count).fill(bytes)
  const stalled = (...moved: number[]): boolean => isStalled(sampled(moved, 10_000), 10_000, 100)
  const table: [moved: number[], is: boolean, what: string][] = [
    [[], false, 'at its start'],
    [seconds(9, 0), false, 'younger than the window'],
    [seconds(10, 0), true, 'nothing at all'],
    [seconds(10, 100), false, 'just at the floor'],
    [seconds(10, 99), true, 'just below it'],
    [[1000, ...seconds(9, 0)], false, 'one burst carries a window'],
    [[1000, ...seconds(10, 0)], true, 'and no longer'],
    [[1e9, ...seconds(30, 0)], true, 'a small disk in one second, then a kept connection'],
    [[...seconds(60, 0), 1000], false, 'it moves again'],
  ]
  for (const [moved, is, what] of table) t.equal(stalled(...moved), is, what)
  t.notOk(isStalled(sampled(seconds(20, 0), 10_000), 10_000, 0), 'a floor of 0 is never reached')
  t.ok(sampled(seconds(10_000, 1), 10_000).length <= 12, 'and it remembers a window, not a day')
  const slept = withSample(sampled(seconds(9, 0), 10_000), { at: 3600_000, moved: 0 }, 10_000)
  t.notOk(isStalled(slept, 10_000, 100), 'a host that slept is no client that stood still')
  t.end()
})

t.test('a lease of the gate ends when nothing of its client is left', t => {
  const lease = createLease('web', 'standby1', 'gate')
  lease.state = 'live'
  lease.gate = {}
  const now = lease.renewedAt + 5000
  t.equal(lapseOf(lease, now), undefined, 'the gate alone')
  lease.gate = undefined
  lease.idleSince = now
  t.equal(lapseOf(lease, now), undefined, 'a connection alone')
  t.equal(lapseOf(lease, now + 3000), undefined, 'both went with one transport, and may come back')
  t.match(lapseOf(lease, now + 3001), { message: /its client went away/ })
  lease.gateLostAt = now + 2000
  t.equal(lapseOf(lease, now + 5000), undefined, 'the gate went last')
  t.match(lapseOf(lease, now + 5001), { message: /its client went away/ })
  t.match(lapseOf({ ...lease, gate: {} }, now + 26_000), { message: /no sign of life for 30 s/ })
  t.equal(lapseOf({ ...lease, kind: 'operator' }, now + 1), undefined)
  t.end()
})

t.test("the kernel's account of a process is read", t => {
  t.strictSame(parseAccount('rchar: 12\nwchar: 345\nsyscr: 7\n'), { read: 12, written: 345 })
  t.strictSame(parseAccount(''), { read: 0, written: 0 })
  t.end()
})

t.test('whether a client is there is read from the sockets of its nbd-server', t => {
  const sockets = parseSockets(
    `LISTEN     0 511 10.0.0.1:10809 0.0.0.0:* ino:10 sk:9 cgroup:/ <->
ESTAB      0 3803136 10.0.0.1:10809 10.0.0.2:58796 timer:(persist,156ms,0) ino:11 sk:1b <->
CLOSE-WAIT 1 0 10.0.0.1:10809 10.0.0.2:58794 timer:(keepalive,8.2ms,0) ino:12 sk:b -->
FIN-WAIT-2 0 0 10.0.0.1:58794 10.0.0.1:10809 timer:(timewait,59sec,0) ino:0 sk:a`,
    `u_str LISTEN 0 511 /run/nbd-clone/nbd.sock 20 * 0
u_str ESTAB  0 0 /run/nbd-clone/nbd.sock 21 * 22
u_str ESTAB  0 223488 /run/nbd-clone/nbd.sock 23 * 0
u_str ESTAB  0 0 * 22 * 21`,
  )
  t.strictSame([...sockets.keys()], ['11', '12', '21', '23'])
  const blind = parseSockets('', 'u_str ESTAB 0 0 /run/nbd-clone/nbd.sock 21 * 0\n')
  t.equal(blind.size, 0, 'a list that knows no peers says nothing about them')
  const table: [inodes: string[], seen: boolean, is: string][] = [
    [['11'], true, 'there'],
    [['12'], true, 'gone'],
    [['12'], false, 'gone'],
    [['22', '21'], false, 'there'],
    [['23', '99'], true, 'gone'],
    [['99'], true, 'gone'],
    [['99'], false, 'unknown'],
    [['10', '20'], false, 'unknown'],
  ]
  for (const [inodes, seen, is] of table)
    t.equal(peerOf(inodes, sockets, seen), is, `${inodes.join()} ${String(seen)}`)
  t.end()
})

t.test('status fits 100 columns, and says how the last session ended and who was refused', t => {
  const status: DomainStatus = {
    domain: 'mydomain',
    state: 'frozen',
    recoveryPoint: '20261120T115113Z-87c2',
    consistency: 'quiesced',
    ageMs: 754_000,
    holders: [
      { kind: 'operator', client: 'operator' },
      { kind: 'gate', client: 'standby1' },
    ],
    connections: 2,
    members: [
      { client: 'standby1', target: 'vda', peer: '10.0.0.2', bytes: 1.5 * GIB },
      { target: 'vdb', peer: '192.168.100.222', bytes: 200 * 1024 ** 2 },
    ],
    freezeMs: 180,
    snapshotMs: 95,
    disks: [{ target: 'vda', base: '/a', overlay: '/o', overlayBytes: 1023.9 * 1024 ** 2 }],
    last: {
      recoveryPoint: '20261120T100000Z-0001',
      at: '2026-11-20T10:30:00.123Z',
      state: 'merged',
      reason: 'the session was too slow',
      remedy: 'be quicker',
      disks: [{ target: 'vda', mergeMs: 900, overlayBytes: 7 * 1024 ** 2 }],
    },
    refusals: [
      { at: '2026-11-20T11:00:00.000Z', export: 'mydomain/vda', code: 'X', reason: 'too full' },
    ],
  }
  const text = statusTable([status])
  const [drawn = '', said = ''] = text.split('\n\n')
  for (const line of drawn.split('\n')) t.ok(line.length <= 100, line)
  for (const cell of [
    ...['frozen', '12m 34s', 'operator', 'standby1 vda 1.5 GiB'],
    ...['stock 192.168.100.222 vdb 200 MiB', 'vda 1023.9 MiB'],
  ])
    t.match(drawn, new RegExp(`  ${cell.replaceAll('.', '\\.')}(  |$)`, 'm'), cell)
  t.strictSame(said.split('\n'), [
    'mydomain: quiesced, guest held for 180 ms, snapshot in 95 ms',
    'mydomain: last: merged 20261120T100000Z-0001 at 2026-11-20 10:30:00Z, vda 7 MiB in 0.9s',
    'mydomain:   it was ended: the session was too slow',
    'mydomain:   hint: be quicker',
    'mydomain: refused mydomain/vda at 2026-11-20 11:00:00Z: too full',
  ])
  t.end()
})
