// clone-server gate: what a client may have through its forced command, carried between its stdio and serve.

import { isIP } from 'node:net'
import type { Readable, Writable } from 'node:stream'
import { toFailure } from '../../shared/failures.ts'
import { checkClient, LOCAL } from '../clients/rights.ts'
import { askServe } from '../serve/client.ts'
import { MAX_REFUSED } from '../serve/words.ts'
import { readGateCommand, type GateCommand } from './command.ts'
import { relayGate } from './relay.ts'
import { openRelay, relayNbd } from './relay-nbd.ts'

/** What sshd says of a session. */
export interface SshSession {
  readonly SSH_ORIGINAL_COMMAND?: string | undefined
  readonly SSH_CONNECTION?: string | undefined
}

/**
 * Serves until either side ends.
 * @param named the client that the forced command names; undefined: whoever may open serve's socket
 * @throws Failure SOURCE_REFUSED with the reason, which serve has logged; SOURCE_UNREACHABLE when it does not run
 */
export async function runGate(
  serveSocket: string,
  named: string | undefined,
  ssh: SshSession,
  input: Readable,
  output: Writable,
): Promise<void> {
  const [address = ''] = ssh.SSH_CONNECTION?.split(' ') ?? []
  const peer = isIP(address) === 0 ? undefined : address
  if (named === undefined) {
    await relayGate(serveSocket, { client: LOCAL, peer }, input, output)
    return
  }
  const client = checkClient(named)
  const command = await readCommand(serveSocket, client, peer, ssh.SSH_ORIGINAL_COMMAND)
  if (command.kind === 'gate') {
    await relayGate(serveSocket, { client, peer }, input, output)
    return
  }
  const { exportName } = command
  await using relay = await openRelay(serveSocket, { client, peer: peer ?? 'unix', exportName })
  await relayNbd(relay, input, output)
}

/** What is refused here is told to serve, which logs it: the client's text goes no further. */
async function readCommand(
  serveSocket: string,
  client: string,
  peer = 'unix',
  original: string | undefined,
): Promise<GateCommand> {
  try {
    return readGateCommand(original)
  } catch (error) {
    const role = { role: 'relay', client, peer } as const
    // Escapes make a short command long, and what is too long would not be logged at all.
    const what = toFailure(error).message.slice(0, MAX_REFUSED)
    await askServe(serveSocket, role, 'relay.refused', { what }).catch(() => undefined)
    throw error
  }
}
