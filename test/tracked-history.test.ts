// A history of what guests and people do to a disk, at random, in a real QEMU that records changes: whichever way a pull chooses,
// the clone is the frozen disk. Run it again with SEED=N.

import t, { type Test } from 'tap'
import { execa } from 'execa'
import { stat } from 'node:fs/promises'
import { newRecoveryPointId } from '../shared/names.ts'
import { readAllocation } from '../server/session/allocation.ts'
import { addPoint, readStorageNodes } from '../server/tracking/bitmaps.ts'
import { readChanged, type Changed } from '../server/tracking/export.ts'
import { refusing } from './client/fake-source.ts'
import { tracked } from './client/tracked-source.ts'
import { realQemu, type RealQemu } from './server/real-qemu.ts'

const MIB = 1024 * 1024
const SEED = Number(process.env['SEED'] ?? Date.now() % 1_000_000)
const ROUNDS = Number(process.env['ROUNDS'] ?? 16)
const SECTOR = 512

/** @returns a number below n */
type Dice = (n: number) => number

function diceOf(seed: number): Dice {
  let state = seed
  return n => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) & 0x7fffffff
    return (state >> 8) % n
  }
}

/** What the guest sees; its image may be larger. */
interface Machine {
  qemu: RealQemu
  size: number
}

/** One thing that happens to a running domain. @returns what it was */
async function happen(machine: Machine, dice: Dice, restart: () => Promise<void>): Promise<string> {
  const { qemu, size } = machine
  const sectors = size / SECTOR
  const offset = dice(sectors) * SECTOR
  const length = Math.min((1 + dice(600)) * SECTOR, size - offset)
  const io = async (command: string): Promise<string> => {
    await qemu.io(command)
    return command
  }
  const resize = async (to: number): Promise<void> => {
    await qemu.resize(to)
    machine.size = to
  }
  switch (dice(12)) {
    case 0:
      return io(`write -z -u ${offset} ${length}`)
    case 1:
      return io(`write -z ${offset} ${length}`)
    case 2:
      return io(`discard ${offset} ${length}`)
    case 3:
      return io('flush')
    case 4:
      await resize(MIB + dice(16 * 1024) * SECTOR)
      return `resize ${machine.size}`
    case 5: {
      // By mistake, and back: what was beyond is lost, and no bitmap knows.
      await resize(Math.max(SECTOR, size - (1 + dice(3000)) * SECTOR))
      await resize(size)
      return 'shrink and grow back'
    }
    case 6:
      await restart()
      return 'restart'
    default:
      return io(`write -P ${1 + dice(255)} ${offset} ${length}`)
  }
}

async function history(t: Test, format: 'raw' | 'qcow2', seed: number): Promise<void> {
  const dice = diceOf(seed)
  const source = await tracked(t, Buffer.alloc(0), { fullCompareEvery: 'off' })
  const image = source.file('vda')
  const size = 6 * MIB + 5 * SECTOR
  await execa('qemu-img', ['create', '-q', '-f', format, image, String(size)])
  const machine: Machine = { qemu: await realQemu(image, format), size }
  t.teardown(() => machine.qemu[Symbol.asyncDispose]())
  const restart = async (): Promise<void> => {
    await machine.qemu.io('flush')
    await machine.qemu[Symbol.asyncDispose]()
    machine.qemu = await realQemu(image, format)
  }

  const { handlers } = source
  const open = handlers['session.open']
  const info = handlers['session.info']
  let point = ''
  let changed: Changed = new Map()
  // As serve does: the disk stands still, what was recorded is read, and recorded from here on.
  handlers['session.open'] = async params => {
    const answer = await open(params)
    const { qemu } = machine
    await qemu.io('flush')
    await qemu.setFrozen(true)
    const last = point
    while (point <= last) point = newRecoveryPointId(new Date())
    const [node] = (await readStorageNodes(qemu.monitor)).filter(({ name }) => name === 'storage')
    const points = [...(node?.points.keys() ?? [])]
    const disk = { target: 'vda', node: 'storage', size: (await stat(image)).size, points }
    changed = await readChanged(qemu.monitor, qemu.socket, [disk])
    await addPoint(qemu.monitor, ['storage'], point)
    return answer
  }
  handlers['session.info'] = async params => {
    const told = await info(params)
    return { ...told, recoveryPoint: { ...told.recoveryPoint, id: point } }
  }
  handlers.changes = ({ since, at }) => {
    const set = changed.get('vda')?.get(since)
    if (!set) return { reason: 'nothing was recorded', extents: [], next: null }
    const extents = [...set.extents(at)].map(([from, length]) => [from, length] as [number, number])
    return { size: set.size, extents, next: null }
  }
  handlers.allocation = async () => {
    const { size } = await stat(image)
    const extents = [...(await readAllocation(image, size)).extents(0)]
    return {
      size,
      extents: extents.map(([from, length]) => [from, length] as [number, number]),
      next: null,
    }
  }

  const kinds = new Map<string, number>()
  const told: string[] = []
  for (let round = 0; round < ROUNDS; round++) {
    for (let count = dice(7); count > 0; count--) told.push(await happen(machine, dice, restart))
    const fails = dice(5) === 0
    handlers['session.release'] = fails
      ? refusing('SOURCE_REFUSED', 'the lease lapsed')
      : () => ({ recoveryPoint: point })
    told.push(fails ? 'failed pull' : 'pull')
    const options = { compare: dice(8) === 0, full: dice(10) === 0 }
    try {
      const { plan } = await source.pull(options)
      for (const { kind } of plan) kinds.set(kind, (kinds.get(kind) ?? 0) + 1)
    } catch (error) {
      const { code } = error as { code?: string }
      // A lie that only the copy can find publishes nothing; the next pull compares.
      if (!fails && code !== 'INTEGRITY') throw error
      told.push(String(code))
    }
    await machine.qemu.setFrozen(false)
    if (dice(3) === 0) await source.trust()
  }
  t.comment([...kinds].map(([kind, count]) => `${count} ${kind}`).join(', '))
  t.comment(told.join('; '))
}

for (const format of ['raw', 'qcow2'] as const)
  t.test(`${format}: the clone is the disk, whatever happened to it`, async t => {
    t.comment(`seed ${SEED}`)
    await history(t, format, SEED)
  })
