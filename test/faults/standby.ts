// What happens to the standby host while it pulls from a real guest.

import { setTimeout as delay } from 'node:timers/promises'
import { waitFor } from '../lab/processes.ts'
import { clone, CLONE } from '../lab/world.ts'
import type { Chance, Happened, Scenario } from './scenario.ts'
import type { World } from './world.ts'

const ROUNDS = 4
/** A pull of the guest's disks takes about as long. */
const PULL_MS = 6000

/** Of all that `current` shows, with coreutils alone. */
const CHECK = `cd ${CLONE}/current || exit 3
for manifest in *.manifest; do
  image=$(ls "\${manifest%.manifest}".raw "\${manifest%.manifest}".qcow2 2>/dev/null)
  split -b 1M --filter='sha256sum | cut -c1-64' "$image" | cmp - "$manifest" || exit 1
  grep -q "$(sha256sum <"$manifest" | cut -c1-64)" generation.json || exit 2
done`

/** Cuts the standby's power at random moments of pulls; each time, one command later, its clone is whole. */
async function powerCuts(world: World, { dice, rounds = ROUNDS }: Chance): Promise<Happened> {
  const { lab } = world
  const wrong: string[] = []
  const first = await clone(lab, 'pull', 'mydomain')
  if (first.exitCode !== 0) wrong.push(`the first pull exits ${first.exitCode}: ${first.stderr}`)
  for (let round = 1; round <= rounds; round++) {
    await world.note()
    const puller = world.pull()
    await delay(dice() * PULL_MS)
    world.strike()
    await lab.powerCut('standby')
    await puller.result
    await lab.boot('standby')
    const status = await clone(lab, 'status')
    if (status.exitCode !== 0) wrong.push(`round ${round}: status exits ${status.exitCode}`)
    const { exitCode, stdout } = await lab.standby(['sh', '-c', CHECK], { reject: false })
    if (exitCode !== 0) wrong.push(`round ${round}: current is not whole (${exitCode}): ${stdout}`)
    // The source ends the session by itself; until then a pull is told to wait.
    await waitFor('a pull to succeed', 120, async () => {
      return (await clone(lab, 'pull', 'mydomain')).exitCode === 0
    })
  }
  return { wrong, note: `${rounds} power cuts; current was whole after each` }
}

export const STANDBY: readonly Scenario[] = [
  {
    name: 'standby-power',
    step: 'any of a pull',
    fault: 'power cut of the standby at random moments',
    pull: true,
    patience: 1800_000,
    run: powerCuts,
  },
]
