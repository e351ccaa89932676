// The table of faults and its report, without a lab: what it covers, how it is chosen, what a bad cell looks like.

import { createServer } from 'node:net'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { STEPS } from '../server/session/journal.ts'
import { Monitor, withSecondMonitor } from './faults/monitor.ts'
import { cellsOf } from './faults/outputs.ts'
import { line, page, summary } from './faults/report.ts'
import { diceOf, type Cell, type Scenario } from './faults/scenario.ts'
import { chosen, sample, SCENARIOS } from './faults/table.ts'

const names = (rows: readonly Scenario[]): string[] => rows.map(({ name }) => name)

t.test('every row has a name of its own, a step and a fault', t => {
  t.equal(new Set(names(SCENARIOS)).size, SCENARIOS.length)
  for (const { name, step, fault } of SCENARIOS) {
    t.match(name, /^[a-z0-9-]+$/)
    t.not(step.trim(), '', name)
    t.not(fault.trim(), '', name)
  }
  t.end()
})

t.test('at every step of the journal each process that is there is killed', t => {
  // A prerun has returned before the copy, and virsh runs neither then nor at the first and last step.
  const absent: Record<string, readonly string[]> = {
    hook: ['frozen'],
    virsh: ['intent', 'frozen', 'done'],
  }
  // Not every session comes to these.
  const rare: readonly string[] = ['alarm', 'suspend', 'resume', 'needs operator']
  for (const step of STEPS.filter(one => !rare.includes(one)))
    for (const victim of ['hook', 'nbd-server', 'serve', 'client', 'virsh']) {
      const there = names(SCENARIOS).some(name => name.startsWith(`kill-${victim}-${step}`))
      t.equal(there, !absent[victim]?.includes(step), `${victim} at ${step}`)
    }
  t.end()
})

t.test('the sample has every kind of fault', t => {
  const kinds = [
    ...['kill-hook', 'kill-nbd-server', 'kill-serve', 'kill-client', 'kill-virsh'],
    ...['kill-hook-and-serve', 'libvirtd-snapshot-window', 'libvirtd-pivot-window'],
    ...['guest-shutdown', 'guest-crash', 'power', 'network', 'overlay-space', 'admin'],
    ...['client-kills', 'overlap', 'dead-end', 'random'],
  ]
  for (const kind of kinds)
    t.ok(
      names(sample()).some(name => name.startsWith(kind)),
      kind,
    )
  t.end()
})

t.test('rows are chosen by name, or by the beginning of it', t => {
  t.strictSame(names(chosen(['overlap'])), ['overlap'])
  t.ok(names(chosen(['dead-end'])).length === 2)
  t.strictSame(names(chosen(['kill-hook-snapshot'])), [
    'kill-hook-snapshot-before',
    'kill-hook-snapshot-after',
  ])
  t.strictSame(chosen(['dead']), chosen(['dead']))
  t.strictSame(chosen(['no-such-row']), [])
  t.strictSame(chosen(undefined), SCENARIOS)
  t.end()
})

t.test('the same seed gives the same numbers, another seed others', t => {
  const first = (seed: number): number[] => Array.from({ length: 20 }, diceOf(seed))
  t.strictSame(first(7), first(7))
  t.notSame(first(7), first(8))
  for (const number of first(7)) t.ok(number >= 0 && number < 1)
  t.end()
})

const row: Scenario = {
  name: 'kill-x',
  step: 'merge',
  fault: 'SIGKILL of x',
  run: () => Promise.resolve({}),
}
const good: Cell = {
  scenario: row,
  wrong: [],
  operator: false,
  happened: 'clone pull: succeeds, pid 17 | 20261120T030007Z-4f2a',
  exit: 0,
  said: '',
  seconds: 1.25,
  pulled: true,
}
const bad: Cell = { ...good, wrong: ['vda lost 1 of 3 marks'], seconds: undefined, exit: undefined }

t.test('a bad cell is counted and says what was wrong', t => {
  t.match(line(good), /^ok +kill-x +exit 0 +1\.[23] s +pull ok +merge: SIGKILL of x -> clone pull/)
  t.match(line(bad), /^BAD (.|\n)*\n +vda lost 1 of 3 marks$/)
  t.equal(summary([good, bad]), '1 passed, 1 failed')
  t.match(summary([good, { ...good, operator: true }]), /^2 passed, 0 failed \(1 of them left to/)
  t.end()
})

t.test('a printed row is read again, also one that says nothing of what happened', t => {
  const { happened } = good
  for (const cell of [good, { ...good, happened: '', operator: true, pulled: false }])
    t.strictSame(cellsOf(line(cell), [row]), [{ ...cell, seconds: 1.3 }])
  t.match(cellsOf(line(bad), [row]), [{ happened, wrong: ['vda lost 1 of 3 marks'] }])
  t.end()
})

t.test('the page has a table row for each cell, without what differs from run to run', t => {
  const text = page([good, bad], ['seed 7'])
  t.match(text, '\n- seed 7\n- 1 passed, 1 failed\n')
  t.match(text, '| merge | SIGKILL of x | clone pull: succeeds, pid N \\| POINT | 0 | 1.3 | yes |')
  t.match(text, '| **BAD**: vda lost 1 of 3 marks | - | - |')
  t.end()
})

t.test('the second monitor leaves the definition otherwise as it was', t => {
  const xml = "<domain type='qemu'>\n  <name>mydomain</name>\n</domain>\n"
  const made = withSecondMonitor(xml)
  t.match(made, "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>")
  t.match(made, /<name>mydomain<\/name>\n<qemu:commandline>.*<\/qemu:commandline><\/domain>/)
  t.end()
})

t.test(
  'a QEMU that goes in the middle of an answer fails the question, and nothing else',
  async t => {
    const directory = await mkdtemp(join(tmpdir(), 'nbd-clone-test-'))
    t.teardown(() => rm(directory, { recursive: true, force: true }))
    const socket = join(directory, 'qmp')
    const server = createServer(qemu => {
      qemu.write('{"QMP":{}}\n')
      qemu.on('error', () => undefined)
      qemu.once('data', () => {
        qemu.write('{"return":{},"id":1}\n')
        // What is not read when a unix socket is closed is a reset for the other side.
        qemu.pause()
        setTimeout(() => {
          qemu.write('{"retu')
          qemu.destroy()
        }, 200)
      })
    })
    t.teardown(() => server.close())
    await new Promise<void>(resolve => server.listen(socket, resolve))
    using monitor = await Monitor.open({ path: () => Promise.resolve(socket) })
    await t.rejects(monitor.chains(), /QEMU did not answer query-block/)
    await t.rejects(monitor.chains(), /QEMU went before query-block/)
  },
)
