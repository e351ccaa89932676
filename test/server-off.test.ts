// The source's preflight as a table, with a libvirt that answers from memory; and what a domain that is off relies on.

import { execFileSync, spawnSync } from 'node:child_process'
import { linkSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import t from 'tap'
import type { Failure } from '../shared/failures.ts'
import type { RunResult } from '../shared/host/run.ts'
import { domainSettings, sourceSchema, type DomainSettings } from '../server/config/schema.ts'
import { parseConfig } from '../shared/config.ts'
import { readDominfo } from '../server/libvirt/dominfo.ts'
import { startHookFault, startHookScript } from '../server/libvirt/start-hook.ts'
import type { Virsh } from '../server/libvirt/virsh.ts'
import { preflight } from '../server/session/preflight.ts'
import { createStarts } from '../server/session/starts.ts'

const folder = mkdtempSync(path.join(tmpdir(), 'nbd-clone-test-'))
t.teardown(() => rmSync(folder, { recursive: true, force: true }))
const image = (name: string): string => {
  const file = path.join(folder, name)
  writeFileSync(file, '')
  truncateSync(file, 1024 * 1024)
  return file
}
const VDA = image('vda.raw')
const EXTRA = image('extra.raw')

interface Told {
  readonly live: string
  readonly inactive: string
  readonly dominfo?: string
  readonly job?: string
  /** QEMU's chains; by default vda on its base. */
  readonly chains?: readonly (readonly string[])[]
}

const DOMINFO =
  'Id:             7\nName:           web\nState:          running\nPersistent:     yes\nManaged save:   no\n'
const dominfoOf = (changes: Record<string, string>): string =>
  Object.entries(changes).reduce(
    (text, [key, value]) => text.replace(new RegExp(`^${key}:.*$`, 'm'), `${key}: ${value}`),
    DOMINFO,
  )
const xml = (disks: string): string =>
  `<domain type='kvm'><name>web</name><uuid>03f5f220-aed9-4ab6-9892-5674034508c3</uuid><os><type arch='x86_64'>hvm</type></os><devices>${disks}</devices></domain>`
const disk = (target: string, file: string, inner = '', type = 'raw', device = 'disk'): string =>
  `<disk type='file' device='${device}'><driver name='qemu' type='${type}'/>${file === '' ? '' : `<source file='${file}'/>`}<target dev='${target}'/>${inner}</disk>`
const vda = disk('vda', VDA)

/** A libvirt that knows one domain. */
function libvirt({
  live,
  inactive,
  dominfo = DOMINFO,
  job = 'None',
  chains = [[VDA]],
}: Told): Virsh {
  const done = (stdout: string): RunResult => ({
    exitCode: 0,
    stdout,
    stderr: '',
    timedOut: false,
    signal: undefined,
  })
  const answer = (args: readonly string[]): string => {
    if (args[0] === 'dominfo') return dominfo
    if (args[0] === 'domjobinfo') return `Job type:         ${job}\n`
    if (args[0] === 'dumpxml') return xml(args.includes('--inactive') ? inactive : live)
    throw new Error(`not expected: virsh ${args.join(' ')}`)
  }
  return {
    uri: 'qemu:///system',
    run: args => Promise.resolve(done(answer(args))),
    text: args => Promise.resolve(answer(args)),
    monitor: () => ({
      execute: ({ execute }, shape) => {
        const blocks = chains.map(chain => ({
          inserted: {
            image: chain
              .toReversed()
              .reduce<object | undefined>(
                (below, filename) => ({ filename, ...(below && { 'backing-image': below }) }),
                undefined,
              ),
          },
        }))
        return Promise.resolve(shape.parse(execute === 'query-block' ? blocks : []) as never)
      },
    }),
  }
}

const settings = (disks = ''): DomainSettings =>
  domainSettings(
    parseConfig(
      'source.yaml',
      `domains: { web: { overlayDir: ${folder}, disks: {${disks}} } }`,
      sourceSchema,
    ),
    'web',
  )

async function check(told: Told, disks = ''): Promise<Awaited<ReturnType<typeof preflight>>> {
  const virsh = libvirt(told)
  return preflight(
    virsh,
    settings(disks),
    'web',
    '20261120T030007Z-4f2a',
    await readDominfo(virsh, 'web'),
  )
}

t.test(
  'a domain in an unusual state, or with unusual disks, is refused with reason and remedy',
  async t => {
    const both = (disks: string): Told => ({ live: disks, inactive: disks })
    const table: [told: Told, code: string, message: RegExp, remedy: RegExp][] = [
      [
        { ...both(vda), dominfo: dominfoOf({ State: 'crashed' }) },
        'SOURCE_REFUSED',
        /is crashed/,
        /virsh destroy web/,
      ],
      [
        { ...both(vda), dominfo: dominfoOf({ State: 'pmsuspended' }) },
        'SOURCE_OFF',
        /is pmsuspended/,
        /dompmwakeup web/,
      ],
      [
        { ...both(vda), dominfo: dominfoOf({ State: 'in shutdown' }) },
        'SOURCE_REFUSED',
        /in shutdown/,
        /wait/,
      ],
      [
        { ...both(vda), dominfo: dominfoOf({ Persistent: 'no' }) },
        'SOURCE_REFUSED',
        /transient/,
        /virsh dumpxml web \| virsh define/,
      ],
      [
        { ...both(vda), dominfo: dominfoOf({ 'Managed save': 'yes' }) },
        'SOURCE_REFUSED',
        /managed save/,
        /managedsave-remove web/,
      ],
      [
        { ...both(vda), job: 'Unbounded' },
        'SOURCE_REFUSED',
        /busy with a libvirt job/,
        /domjobinfo web/,
      ],
      [
        { live: vda + disk('vdb', EXTRA), inactive: vda },
        'SOURCE_REFUSED',
        /disk vdb of web: the running domain uses .*extra\.raw, its definition says nothing/,
        /attach-disk/,
      ],
      [
        { live: vda, inactive: vda + disk('vdb', EXTRA) },
        'SOURCE_REFUSED',
        /disk vdb of web is in its definition, but not in the running domain/,
        /detach-disk --config/,
      ],
      [
        { live: vda, inactive: disk('vda', EXTRA) },
        'SOURCE_REFUSED',
        /disk vda of web: the running domain uses .*vda\.raw, its definition says .*extra\.raw/,
        /make them equal/,
      ],
      [
        { ...both(vda), chains: [[VDA, EXTRA]] },
        'SOURCE_REFUSED',
        /a chain of 2 images/,
        /recover web --merge-overlays vda/,
      ],
      [
        { ...both(vda), chains: [] },
        'NEEDS_OPERATOR',
        /QEMU does not have .*vda\.raw open/,
        /virsh domblklist web/,
      ],
      [
        both(disk('vda', `${folder}/x.nbd-clone.qcow2`, '', 'qcow2')),
        'NEEDS_OPERATOR',
        /no journal says why/,
        /recover web --merge-overlays vda/,
      ],
      [
        both(disk('vda', VDA, '<mirror type="file"/>')),
        'SOURCE_REFUSED',
        /disk vda of web has a block job/,
        /virsh blockjob web vda --info/,
      ],
      [
        both(disk('vda', VDA, '<encryption format="luks"/>')),
        'SOURCE_REFUSED',
        /disk vda of web: an encrypted disk/,
        /disks\.vda\.exclude: true/,
      ],
      [
        both(disk('sda', VDA, '', 'raw', 'lun')),
        'SOURCE_REFUSED',
        /disk sda of web: a passed-through SCSI LUN/,
        /exclude: true/,
      ],
      [
        both(disk('vda', VDA, '<transient/>')),
        'SOURCE_REFUSED',
        /disk vda of web: a transient disk/,
        /exclude: true/,
      ],
      [
        both(disk('vda', VDA, '<shareable/>')),
        'SOURCE_REFUSED',
        /disk vda of web: a shareable disk/,
        /exclude: true/,
      ],
      [
        both(
          vda +
            "<disk type='network' device='disk'><driver type='raw'/><source protocol='rbd' name='p/i'/><target dev='vdb'/></disk>",
        ),
        'SOURCE_REFUSED',
        /disk vdb of web: a disk of type network/,
        /exclude: true/,
      ],
      [both(disk('vda', `${folder}/gone.raw`)), 'NEEDS_OPERATOR', /gone\.raw/, /domblklist/],
      [
        both(disk('sda', VDA, '<readonly/>', 'raw', 'cdrom')),
        'SOURCE_REFUSED',
        /web has no disk to export/,
        /./,
      ],
    ]
    for (const [told, code, message, remedy] of table) {
      const failure = await check(told).then(
        () => undefined,
        (error: unknown) => error as Failure,
      )
      t.equal(failure?.code, code, String(message))
      t.match(failure?.message, message)
      t.match(failure?.hint, remedy)
    }
    await t.rejects(check(both(vda), 'vdz: { exclude: true }'), {
      message: /web has no disk vdz, which source.yaml names/,
    })
  },
)

t.test('what need not be frozen is left as it is, and named in the snapshot as such', async t => {
  const rest = [
    disk('sda', EXTRA, '<readonly/>', 'raw', 'cdrom'),
    disk('sdb', '', '<readonly/>', 'raw', 'cdrom'),
    disk('fda', EXTRA, '', 'raw', 'floppy'),
    disk('vdb', EXTRA, '<readonly/>'),
  ].join('')
  const found = await check({ live: vda + rest, inactive: vda + rest })
  t.strictSame(
    [found.disks.map(one => one.target), found.left],
    [['vda'], ['sda', 'sdb', 'fda', 'vdb']],
  )
  const plugged = disk('vdc', EXTRA, '<shareable/>')
  const excluded = await check({ live: vda + plugged, inactive: vda }, 'vdc: { exclude: true }')
  t.strictSame(excluded.left, ['vdc'], 'an excluded disk of the running domain alone')
  const config = await check({ live: vda, inactive: vda + plugged }, 'vdc: { exclude: true }')
  t.strictSame(config.left, [], 'an excluded disk of the definition alone')
  const paused = { live: vda, inactive: vda, dominfo: dominfoOf({ State: 'paused' }) }
  t.equal((await check(paused)).disks.length, 1, 'a paused domain')
})

t.test('libvirt gives a domain its id before anything else of a start is seen', async t => {
  const off = libvirt({
    live: vda,
    inactive: vda,
    dominfo: dominfoOf({ Id: '-', State: 'shut off' }),
  })
  t.match(await readDominfo(off, 'web'), { active: false, state: 'shut off', persistent: true })
  const starting = libvirt({ live: vda, inactive: vda, dominfo: dominfoOf({ State: 'shut off' }) })
  t.match(await readDominfo(starting, 'web'), { active: true, state: 'shut off' })
})

t.test(
  'who relies on a domain being off hears of its start, and the start waits for that',
  async t => {
    const starts = createStarts()
    const one = starts.watch('web')
    const other = starts.watch('db')
    await one.covers([VDA])
    await other.covers([EXTRA])
    let done = false
    one.onBreak(async () => {
      await new Promise(resolve => setTimeout(resolve, 20))
      done = true
    })
    t.equal(await starts.heard({ domain: 'mail', images: ['/nowhere'] }), 0)
    t.equal(one.broken(), undefined)
    t.equal(await starts.heard({ domain: 'web', images: [] }), 1)
    t.ok(done, 'the answer came after its readers had gone')
    t.match(one.broken()?.message, /domain web was started/)
    t.equal(other.broken(), undefined)
    other.close()
    t.equal(await starts.heard({ domain: 'db', images: [EXTRA] }), 0, 'nobody listens any more')
  },
)

t.test('an image is the same under whatever name', async t => {
  const starts = createStarts()
  const watch = starts.watch('web')
  await watch.covers([VDA])
  const link = path.join(folder, 'another-name.raw')
  linkSync(VDA, link)
  t.equal(await starts.heard({ domain: 'copy-of-web', images: [link] }), 1)
  t.match(watch.broken()?.message, /domain copy-of-web was started on images of web/)
})

t.test('the hook script acts on prepare begin alone, and lets every start go on', async t => {
  const script = startHookScript("/run/it's here/serve.sock")
  execFileSync('sh', ['-n'], { input: script })
  const ran = (...args: string[]): { status: number | null; asked: string } => {
    // A program named timeout first on PATH says what it was asked to run, and fails as if serve were not there.
    const bin = mkdtempSync(path.join(folder, 'bin-'))
    writeFileSync(path.join(bin, 'timeout'), '#!/bin/sh\nprintf "%s\\n" "$@" >&2\nexit 10\n', {
      mode: 0o755,
    })
    const { status, stderr } = spawnSync('sh', ['-s', '--', ...args], {
      input: script,
      encoding: 'utf8',
      env: { PATH: `${bin}:${process.env['PATH'] ?? ''}` },
    })
    return { status, asked: stderr }
  }
  for (const words of [
    ['start', 'begin'],
    ['started', 'begin'],
    ['stopped', 'end'],
    ['restore', 'begin'],
    ['migrate', 'begin'],
  ])
    t.strictSame(ran('web', ...words, '-'), { status: 0, asked: '' }, words.join(' '))
  const { status, asked } = ran("--we b'$x", 'prepare', 'begin', '-')
  t.equal(status, 0)
  t.strictSame(asked.trim().split('\n').slice(-5), [
    'hook',
    'start',
    '--socket',
    "/run/it's here/serve.sock",
    "--domain=--we b'$x",
  ])
})

t.test('a start is not told where libvirt cannot be ours or runs no such hook', async t => {
  t.match(await startHookFault('/s', 'qemu+ssh://b/system', '9.0.0'), {
    reason: /only under qemu:\/\/\/system/,
  })
  t.match(await startHookFault('/s', 'qemu:///system', '6.4.0'), {
    reason: /libvirt 6\.4\.0 does not run hooks/,
  })
})
