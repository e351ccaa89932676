// Clients: killed with requests in flight, two at once on one session, and the dead end of an overlay that nobody merged.

import { setTimeout as delay } from 'node:timers/promises'
import { inHost } from '../lab/enter.ts'
import type { HostName } from '../lab/names.ts'
import { waitFor } from '../lab/processes.ts'
import { IMAGES, NBD, SSH } from '../lab/world.ts'
import { unsettled } from './checks.ts'
import { letGo, refuseCalls } from './holds.ts'
import type { Chance, Happened, Scenario } from './scenario.ts'
import { BASES, type Puller, type World } from './world.ts'

const ROUNDS = 40
/** The promise: on its bases so soon after a client was killed. */
const PROMISED_SECONDS = 10
/** Of a later return it is still worth to know how late. */
const GIVE_UP_SECONDS = 80
/** A copy of the guest's disks takes at least so long. */
const COPY_MS = 600
/** The guest is asked what it has synced only so often: it costs as much as a round. */
const NOTE_EVERY = 5

const TCP = 'nbd://10.77.77.1:10809/mydomain/vda'
const CLIENTS: readonly { name: string; host: HostName; argv: readonly string[] }[] = [
  { name: 'clone pull', host: 'standby', argv: ['clone', 'pull', 'mydomain'] },
  { name: 'nbdcopy, unix', host: 'source', argv: ['nbdcopy', '--connections=4', NBD, 'null:'] },
  { name: 'nbdcopy, tcp', host: 'standby', argv: ['nbdcopy', '--connections=4', TCP, 'null:'] },
  { name: 'qemu-img, unix', host: 'source', argv: convert(NBD) },
  { name: 'qemu-img, tcp', host: 'standby', argv: convert(TCP) },
]

function convert(uri: string): string[] {
  return ['qemu-img', 'convert', '-f', 'raw', '-O', 'raw', uri, '/tmp/copy.raw']
}

async function clientKills(world: World, { dice, rounds = ROUNDS }: Chance): Promise<Happened> {
  const seconds: number[] = []
  const wrong: string[] = []
  for (let round = 1; round <= rounds;) {
    const client = CLIENTS[Math.floor(dice() * CLIENTS.length)]
    if (!client) continue
    const killed = await killOne(world, client, dice() * COPY_MS)
    // A client that was done before its kill proves nothing.
    if (!killed) continue
    const took = await untilSettled(world)
    seconds.push(took)
    if (took > PROMISED_SECONDS)
      wrong.push(`kill ${round} (${client.name}): on its bases after ${took.toFixed(1)} s`)
    if (took > GIVE_UP_SECONDS) break
    if (round++ % NOTE_EVERY === 0) await world.note()
  }
  const sorted = seconds.toSorted((a, b) => a - b)
  const most = sorted.at(-1) ?? Infinity
  const median = sorted[Math.floor(sorted.length / 2)] ?? Infinity
  return {
    note: `${seconds.length} kills: max ${most.toFixed(1)} s, median ${median.toFixed(1)} s`,
    seconds: most,
    wrong,
  }
}

/** @returns whether it was still at work */
async function killOne(
  world: World,
  { host, argv }: (typeof CLIENTS)[number],
  ms: number,
): Promise<boolean> {
  const frozen = world.serve.count('frozen')
  const client = world.client(host, argv)
  await waitFor(
    'the session to freeze',
    60,
    () => client.isOver() || world.serve.count('frozen') > frozen,
  )
  await delay(ms)
  const atWork = !client.isOver()
  if (atWork) await world.kill('client', client)
  await client.result
  await inHost(host, ['rm', '-f', '/tmp/copy.raw'])
  if (!atWork)
    await waitFor('its merge', 60, async () => (await unsettled(world, 'running')).length === 0)
  return atWork
}

/** Seconds from the last fault. */
async function untilSettled(world: World): Promise<number> {
  for (;;) {
    const wrong = await unsettled(world, 'running').catch((error: unknown) => [String(error)])
    const seconds = (performance.now() - (world.struckAt ?? 0)) / 1000
    if (wrong.length === 0 || seconds > GIVE_UP_SECONDS) return seconds
    await delay(50)
  }
}

const THIRD = `${IMAGES}/third.raw`
const MAKE_THIRD = `truncate -s 64M ${THIRD} && dd if=/dev/urandom of=${THIRD} bs=1M count=8 conv=notrunc status=none`
const SECOND = '/etc/nbd-clone/second.yaml'
const SECOND_CONFIG = `
sources: { alpha: { transport: tcp, host: source, insecure: true, gate: ssh, ${SSH} } }
domains: { second: { domain: mydomain, source: alpha, rpo: 4h } }
`
const SECOND_CLONE = '/var/lib/nbd-clone/clones/second'
/** serve tells new connections what it knew of a domain's disks for so long. */
const TARGETS_FRESH_MS = 5100

/** One pull stands in its copy; a second joins and is not done yet when the first is killed. */
async function overlap(world: World): Promise<Happened> {
  const { lab } = world
  const bases = { ...BASES, vdc: THIRD }
  await lab.source(['sh', '-c', MAKE_THIRD])
  await lab.source(['virsh', '-q', 'attach-disk', 'mydomain', THIRD, 'vdc', '--persistent'])
  await lab.writeFile('standby', SECOND, SECOND_CONFIG)
  await delay(TARGETS_FRESH_MS)
  world.bases = bases
  const [frozen, merged] = [world.serve.count('frozen'), world.serve.count('merged, on its bases')]
  const first = await world.heldPull()
  await world.note()
  const digests = await sums(world, 'source', Object.values(bases))
  const connections = world.serve.count('connection')
  const second = world.client('standby', ['clone', 'pull', 'second', '--config', SECOND])
  await waitFor(
    'the second to connect',
    30,
    () => world.serve.count('connection') >= connections + 3,
  )
  if (second.isOver()) throw new Error('the second pull was over before the first was killed')
  await world.kill('client', first)
  const { exitCode } = await second.result
  const wrong: string[] = []
  const copies = ['vda.raw', 'vdb.qcow2', 'vdc.raw'].map(name => `${SECOND_CLONE}/current/${name}`)
  if (exitCode === 0 && (await sums(world, 'standby', copies)) !== digests)
    wrong.push('the other copy is not what was frozen')
  return {
    puller: second,
    exits: [0],
    wrong,
    note: 'three disks; the other copy is what was frozen; one freeze, one merge',
    async afterwards() {
      const freezes = world.serve.count('frozen') - frozen
      const merges = world.serve.count('merged, on its bases') - merged
      await lab.source(['virsh', '-q', 'detach-disk', 'mydomain', 'vdc', '--persistent'])
      await lab.source(['rm', THIRD])
      await lab.standby(['rm', '-r', SECOND_CLONE])
      if (freezes !== 1 || merges !== 1) throw new Error(`${freezes} freezes, ${merges} merges`)
    },
  }
}

async function sums({ lab }: World, host: HostName, files: readonly string[]): Promise<string> {
  const { stdout } = await lab.run(host, ['sha256sum', ...files])
  return stdout.replaceAll(/ .*/g, '')
}

/** An overlay that could not be merged keeps every client out; then what stood in the way goes. */
async function deadEnd(world: World, heal: () => Puller): Promise<Happened> {
  const { lab } = world
  await refuseCalls(lab, '* *blockcommit*')
  await lab.source(['clone-server', 'session', 'open', 'mydomain'], { timeout: 60_000 })
  await world.note()
  const closing = ['clone-server', 'session', 'close', 'mydomain']
  const closed = await lab.source(closing, { reject: false, timeout: 120_000 })
  const refused = await lab.source(['nbdinfo', '--size', NBD], { reject: false, timeout: 120_000 })
  await letGo(lab)
  if (closed.exitCode === 0 || refused.exitCode === 0)
    throw new Error(`no dead end: close exits ${closed.exitCode}, nbdinfo ${refused.exitCode}`)
  world.strike()
  return {
    puller: heal(),
    exits: [0],
    note: `session close had exited ${closed.exitCode}, and nobody got in`,
  }
}

export const CLIENT: readonly Scenario[] = [
  {
    name: 'client-kills',
    step: 'frozen, copying, requests in flight',
    fault: 'SIGKILL of clone pull, nbdcopy or qemu-img at a random moment, again and again',
    sample: true,
    pull: true,
    patience: 7200_000,
    run: clientKills,
  },
  {
    name: 'overlap',
    step: 'frozen, two pulls copying three disks',
    fault: 'SIGKILL of one client',
    sample: true,
    pull: true,
    run: overlap,
  },
  {
    name: 'dead-end-recover',
    step: 'merge failed, clients are refused',
    fault: 'left on an overlay; then one clone-server recover',
    sample: true,
    pull: true,
    run: world =>
      deadEnd(world, () => world.client('source', ['clone-server', 'recover', 'mydomain'])),
  },
  {
    name: 'dead-end-pull',
    step: 'merge failed, clients are refused',
    fault: 'left on an overlay; then the next pull',
    run: world => deadEnd(world, () => world.pull()),
  },
]
