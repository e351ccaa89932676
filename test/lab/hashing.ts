// A client that compares by hash and does nothing else: it holds a session by one idle connection, and asks the gate.

import { HASHER } from '../../server/digest/words.ts'
import { GATE, type GateMethod, type GateParams, type GateResult } from '../../shared/gate.ts'
import { exportName } from '../../shared/names.ts'
import { responseToFailure, rpcConnection } from '../../shared/rpc.ts'
import type { Lab } from './lab.ts'
import { listProcesses, namespaceInode, signal, waitFor, type Process } from './processes.ts'
import type { Serve } from './world.ts'

export interface HashingClient extends AsyncDisposable {
  /** @throws Failure as the source gave it */
  ask<M extends GateMethod>(method: M, params: GateParams<M>): Promise<GateResult<M>>
  digests(target: string, chunk: number, count: number): Promise<string[]>
  readonly token: string
  /** SIGKILL of its gate and its connection. */
  kill(): Promise<void>
}

/** Opens a session of mydomain and returns when it is frozen. */
export async function startHashingClient(lab: Lab, serve: Serve): Promise<HashingClient> {
  const gate = lab.spawn('source', ['clone-server', 'gate'])
  const rpc = rpcConnection(gate.stdout, gate.stdin)
  // A gate that is gone is what some tests are about.
  rpc.onError(() => undefined)
  rpc.listen()
  const ask = async <M extends GateMethod>(
    method: M,
    params: GateParams<M>,
  ): Promise<GateResult<M>> => {
    try {
      const answer: unknown = await rpc.sendRequest(method, params)
      return GATE[method].result.parse(answer) as GateResult<M>
    } catch (error) {
      throw responseToFailure(error, 'SOURCE_UNREACHABLE')
    }
  }
  const { token } = await ask('session.open', { domain: 'mydomain', want: {} })
  const uri = `nbd+unix:///${exportName('mydomain', 'vda', token)}?socket=/run/nbd-clone/nbd.sock`
  const frozen = serve.count('frozen')
  const folder = '/run/hashing'
  const connection = lab.spawn('source', [
    ...['sh', '-c', `mkdir -p ${folder}; exec nbdfuse --connections=1 ${folder}/disk '${uri}'`],
  ])
  await waitFor('the freeze', 30, () => serve.count('frozen') > frozen)
  const kill = async (): Promise<void> => {
    rpc.dispose()
    for (const one of [gate, connection]) {
      one.signal('SIGKILL')
      await one.result
    }
    await lab.source(['sh', '-c', `fusermount3 -uz ${folder} 2>/dev/null || true`])
  }
  return {
    ask,
    digests: async (target, chunk, count) =>
      (await ask('digests', { token, target, chunk, count })).digests,
    token,
    kill,
    [Symbol.asyncDispose]: kill,
  }
}

/** The process on the source that hashes, if there is one. */
export async function findHasher(lab: Lab): Promise<Process | undefined> {
  const namespace = namespaceInode(await lab.path('source', '/proc/1/ns/pid'))
  return listProcesses().find(
    ({ pid, command, zombie }) =>
      command === HASHER && !zombie && namespaceInode(`/proc/${pid}/ns/pid`) === namespace,
  )
}

/** Stops the process that hashes, so that what is asked from now on is under way for certain. */
export async function stopHasher(lab: Lab): Promise<void> {
  const hasher = await waitFor('the hasher', 10, () => findHasher(lab))
  signal(hasher.pid, 'SIGSTOP')
}
