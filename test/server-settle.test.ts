// How a source decides about overlays: the verdict table for a domain that is off, and libvirt's XMLs put back onto the bases.

import { mkdtemp, rm } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import t from 'tap'
import { readBlockJobs, readChains } from '../server/libvirt/graph.ts'
import { readDomainXml } from '../server/libvirt/domain-xml.ts'
import { openMonitorSocket } from '../server/libvirt/monitor.ts'
import { definitionOnBase, onBackingStore, statusPid } from '../server/libvirt/on-base.ts'
import { createLadder, type MergePolicy } from '../server/session/ladder.ts'
import { verdictOn, type DiskFacts, type Verdict } from '../server/session/verdict.ts'
import type { Virsh } from '../server/libvirt/virsh.ts'
import { createLog } from '../shared/log.ts'

const silent = createLog('test', 'silent')

const frozen: DiskFacts = {
  overlay: 'ours',
  holdsData: true,
  named: true,
  stacked: false,
  snapshot: true,
  frozen: true,
  merge: false,
  pivot: false,
  clean: false,
  elsewhere: false,
  baseWritten: false,
}

t.test('what becomes of the overlay of a domain that is off', async t => {
  const table: [why: string, facts: Partial<DiskFacts>, verdict: Verdict][] = [
    ['it crashed while frozen', {}, 'commit'],
    ['it crashed, and somebody repaired the base alone', { baseWritten: true }, 'two histories'],
    [
      'it crashed in a begin, before it wrote to the overlay',
      { frozen: false, baseWritten: true },
      'commit',
    ],
    ['it crashed in a merge', { merge: true, baseWritten: true }, 'commit'],
    [
      'at a pivot that libvirt did not end',
      { merge: true, pivot: true, baseWritten: true },
      'commit',
    ],
    ['at a pivot that libvirt ended', { named: false, merge: true, pivot: true }, 'delete'],
    ['merged, not yet deleted', { named: false, clean: true, baseWritten: true }, 'delete'],
    ['its definition was replaced, its base is as it was', { named: false }, 'commit'],
    [
      'its definition was replaced, and it ran',
      { named: false, baseWritten: true },
      'two histories',
    ],
    ['a block device does not tell', { named: false, baseWritten: undefined }, 'two histories'],
    ['its definition was replaced during a merge', { named: false, merge: true }, 'two histories'],
    ['the guest wrote nothing', { named: false, holdsData: false, baseWritten: true }, 'delete'],
    ['no snapshot was taken', { named: false, snapshot: false, frozen: false }, 'delete'],
    ['power was cut before anything was on the medium', { overlay: 'blank' }, 'delete'],
    ['somebody deleted it', { overlay: 'missing' }, 'gone'],
    ['it is gone, though nothing was merged', { overlay: 'missing', named: false }, 'gone'],
    ['it was merged by hand', { overlay: 'missing', named: false, baseWritten: true }, 'delete'],
    [
      'its file system is not mounted',
      { overlay: 'missing', named: false, elsewhere: true, baseWritten: true },
      'gone',
    ],
    ['it was never made', { overlay: 'missing', named: false, frozen: false }, 'delete'],
    ["an admin's snapshot lies on it", { named: false, stacked: true }, 'stacked'],
    ['another image has its name', { overlay: 'strange' }, 'strange'],
    ['merged, and another image has its name', { overlay: 'strange', clean: true }, 'delete'],
  ]
  for (const [why, facts, verdict] of table)
    t.equal(verdictOn({ ...frozen, ...facts }), verdict, why)
})

t.test('an overlay that may hold the only copy of what a guest wrote is never deleted', async t => {
  const flags = [true, false]
  for (const named of flags)
    for (const snapshot of flags)
      for (const merge of flags)
        for (const baseWritten of [true, false, undefined]) {
          const facts = { ...frozen, named, snapshot, merge, baseWritten }
          // Without a snapshot QEMU never wrote to it; everything else may be all there is.
          if (snapshot || named) t.not(verdictOn(facts), 'delete', JSON.stringify(facts))
        }
})

const overlay = { target: 'vda', base: '/dev/vg/web', overlay: '/o/web.vda.nbd-clone.qcow2' }
const domain = (disks: string): string =>
  `<domain type='kvm'><name>web</name><uuid>u</uuid><devices>${disks}</devices></domain>`
const vdb = `<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/i/b.qcow2'/><target dev='vdb'/></disk>`
const before = domain(
  `<disk type='block' device='disk'><driver name='qemu' type='raw' cache='none'/><source dev='/dev/vg/web'><seclabel model='dac' relabel='no'/></source><target dev='vda'/></disk>${vdb}`,
)

t.test(
  'a definition is put back the way it was before the session, and nothing else of it changes',
  async t => {
    const now = domain(
      `<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none'/><source file='${overlay.overlay}'/><backingStore type='block'><format type='raw'/><source dev='/dev/vg/web'/></backingStore><target dev='vda'/><boot order='1'/></disk>${vdb}`,
    )
    const corrected = definitionOnBase(now, before, [overlay]) ?? ''
    const [disk, other] = readDomainXml(corrected).disks
    t.match(disk, { type: 'block', source: '/dev/vg/web', driver: 'raw', hasBacking: false })
    t.match(corrected, /<seclabel model="dac" relabel="no"\/>/)
    t.match(corrected, /cache="none"/)
    t.match(corrected, /<boot order="1"\/>/, 'what was added meanwhile stays')
    t.strictSame(other, readDomainXml(now).disks[1])
    t.equal(definitionOnBase(before, before, [overlay]), undefined, 'nothing to correct')
    t.throws(() => definitionOnBase(now, domain(vdb), [overlay]), /had no disk vda/)
  },
)

t.test(
  'a status XML that libvirt cannot read is put on the base with the node names of the base',
  async t => {
    const source = (file: string, node: string, index = ''): string =>
      `<source dev='${file}'${index}><privateData><nodenames><nodename type='format' name='${node}'/></nodenames></privateData></source>`
    const status = `<domstatus state='running' pid='147'><blockjobs active='yes'>
    <blockjob name='commit-vda-libvirt-82-format'><disk dst='vda'/></blockjob></blockjobs>
    ${domain(`<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='${overlay.overlay}' index='82'/>
    <backingStore type='block' index='2'><format type='raw'/>${source('/dev/vg/web', 'libvirt-2-format')}<backingStore/></backingStore>
    <mirror type='block' job=''><format type='raw'/>${source('/dev/vg/web', 'libvirt-2-format', " index='2'")}</mirror><target dev='vda'/></disk>`)}</domstatus>`
    t.equal(statusPid(status), 147)
    const corrected = onBackingStore(status, [overlay]) ?? ''
    t.notMatch(corrected, /mirror|<blockjob |libvirt-82|nbd-clone/)
    t.match(
      corrected,
      /<disk type="block"[^>]*><driver name="qemu" type="raw"\/>\s*<source dev="\/dev\/vg\/web" index="2"><privateData><nodenames><nodename type="format" name="libvirt-2-format"\/>/,
    )
    t.match(corrected, /<backingStore\/>/)
    t.equal(onBackingStore(corrected, [overlay]), undefined, 'once is enough')
    const strange = status.replaceAll('/dev/vg/web', '/dev/vg/other')
    t.throws(
      () => onBackingStore(strange, [overlay]),
      /does not say that it lies on \/dev\/vg\/web/,
    )
  },
)

t.test(
  'a merge that does not end: alarm, then all bandwidth, then a short pause if allowed',
  async t => {
    const said: string[] = []
    let ready = false
    const paused = false as boolean
    const monitor = {
      execute: (
        { execute }: { execute: string },
        shape: { parse: (value: unknown) => unknown },
      ) => {
        if (execute === 'query-block-jobs')
          return Promise.resolve(
            shape.parse([{ device: 'commit-vda-x', type: 'commit', ready: (ready = true) }]),
          )
        if (execute === 'query-status')
          return Promise.resolve(shape.parse({ status: paused ? 'paused' : 'running' }))
        said.push(execute)
        return Promise.resolve(shape.parse({}))
      },
    }
    const virsh = { monitor: () => monitor } as unknown as Virsh
    const ladder = (policy: MergePolicy) =>
      createLadder(virsh, silent, 'web', 'vda', policy, step => {
        said.push(`journal: ${step}`)
        return Promise.resolve()
      })
    const climbed = async (policy: MergePolicy, ...seconds: number[]): Promise<string[]> => {
      said.length = 0
      const one = ladder(policy)
      for (const at of seconds) await one.climb(at * 1000, 'commit-vda-x')
      return [...said]
    }
    const policy = { bandwidth: 0, alarm: 10_000, pause: 0 }
    t.strictSame(await climbed(policy, 0, 9), [], 'in time')
    t.strictSame(await climbed(policy, 9, 10, 60, 600), ['journal: alarm'], 'said once')
    t.strictSame(
      await climbed({ ...policy, bandwidth: 5 }, 10, 60),
      ['journal: alarm', 'block-job-set-speed'],
      'a limit is lifted',
    )
    t.strictSame(
      await climbed({ ...policy, pause: 500 }, 10, 19, 20, 29, 30),
      [
        'journal: alarm',
        ...['journal: suspend', 'stop', 'cont', 'journal: resume'],
        ...['journal: suspend', 'stop', 'cont', 'journal: resume'],
      ],
      'paused after twice the time, and again after it',
    )
    t.ok(ready)
  },
)

t.test("QEMU's own monitor socket", async t => {
  const directory = await mkdtemp(path.join(tmpdir(), 'nbd-clone-test-'))
  const file = path.join(directory, 'monitor.sock')
  t.teardown(() => rm(directory, { recursive: true, force: true }))
  const answers: Record<string, unknown> = {
    qmp_capabilities: {},
    'query-block': [
      {
        inserted: {
          image: {
            filename: '/o',
            'backing-image': { filename: 'json:{"file":{"filename":"/b"}}' },
          },
        },
      },
      { 'io-status': 'ok' },
    ],
  }
  const server = createServer(socket => {
    socket.write('{"QMP":{"version":{},"capabilities":[]}}\n')
    socket.on('error', () => undefined)
    socket.on('data', (chunk: Buffer) => {
      const { execute } = JSON.parse(chunk.toString()) as { execute: string }
      const reply = JSON.stringify(
        execute in answers
          ? { return: answers[execute] }
          : { error: { class: 'X', desc: 'no such thing' } },
      )
      // An event may come at any moment, and a reply in two pieces.
      socket.write(`{"event":"BLOCK_JOB_READY"}\n${reply.slice(0, 5)}`)
      setTimeout(() => socket.write(`${reply.slice(5)}\n`), 5)
    })
  })
  await new Promise<void>(resolve => server.listen(file, resolve))
  {
    await using monitor = await openMonitorSocket(file)
    t.strictSame(await readChains(monitor), [['/o', '/b']], 'events are no replies')
    await t.rejects(readBlockJobs(monitor), { code: 'SOURCE_REFUSED', message: /no such thing/ })
    answers['query-block-jobs'] = 'nonsense'
    await t.rejects(readBlockJobs(monitor), { code: 'SOURCE_REFUSED', message: /not understood/ })
  }
  server.close()
  await t.rejects(openMonitorSocket(file), { code: 'SOURCE_REFUSED', message: /QEMU's monitor/ })
})
