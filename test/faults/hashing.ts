// A client that compares by hash: SIGKILL of whoever is there while its base is hashed.

import { Failure } from '../../shared/failures.ts'
import { findHasher, startHashingClient, stopHasher, type HashingClient } from '../lab/hashing.ts'
import { waitFor } from '../lab/processes.ts'
import type { Happened, Scenario } from './scenario.ts'
import type { World } from './world.ts'

/** A question that is under way for certain: who would answer it stands still. */
async function asking(world: World): Promise<{ client: HashingClient; failed: Promise<string> }> {
  const client = await startHashingClient(world.lab, world.serve)
  await client.digests('vda', 0, 1)
  await stopHasher(world.lab)
  const failed = client.digests('vda', 0, 8).then(
    () => 'it was answered',
    (error: unknown) => (error instanceof Failure ? error.code : String(error)),
  )
  await world.note()
  return { client, failed }
}

/** A process that reads a base must go with its serve: what comes next merges into that base. */
async function killServe(world: World): Promise<Happened> {
  const { client } = await asking(world)
  await world.kill('serve')
  await waitFor('the hasher to go', 2, async () => (await findHasher(world.lab)) === undefined)
  await client.kill()
  await world.restartServe()
  return { note: 'the hasher, which was stopped, died with it' }
}

async function killClient(world: World): Promise<Happened> {
  const { client } = await asking(world)
  world.strike()
  await client.kill()
  return {}
}

/** The session goes on: the question fails, the next one is answered by another. */
async function killHasher(world: World): Promise<Happened> {
  const { client, failed } = await asking(world)
  await world.kill('hasher')
  const code = await failed
  const again = await client.digests('vda', 0, 8)
  await client.ask('session.release', { token: client.token })
  await client.kill()
  const wrong = [
    ...(code === 'TRANSFER' ? [] : [`the question ended with ${code}`]),
    ...(again.length === 8 ? [] : [`${again.length} digests for 8 chunks`]),
  ]
  return { wrong, note: 'asked again, answered, released' }
}

export const HASHING: readonly Scenario[] = [
  { name: 'hashing-serve', step: 'frozen, hashing', fault: 'SIGKILL of serve', run: killServe },
  { name: 'hashing-client', step: 'frozen, hashing', fault: 'SIGKILL of client', run: killClient },
  {
    name: 'hashing-child',
    step: 'frozen, hashing',
    fault: 'SIGKILL of the hasher',
    run: killHasher,
  },
]
