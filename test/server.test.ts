// The source's pure parts: configuration, generated nbd-server configuration, domain XML, journal.

import { execFileSync } from 'node:child_process'
import { appendFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { parseConfig } from '../shared/config.ts'
import { Failure } from '../shared/failures.ts'
import { domainSettings, effectiveSettings, sourceSchema } from '../server/config/schema.ts'
import { showDomain } from '../server/commands/config.ts'
import { exportability, readDomainXml, type DomainDisk } from '../server/libvirt/domain-xml.ts'
import { snapshotArguments } from '../server/libvirt/snapshot.ts'
import { connectionConfig, sectionsOf } from '../server/nbd-server/config.ts'
import {
  isOpen,
  journalFile,
  mendJournal,
  readJournal,
  recordStep,
  startJournal,
} from '../server/session/journal.ts'

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
