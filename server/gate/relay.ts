// clone-server gate: a thin relay between a client's stdio and serve's socket, with the client's name in front.

import type { Readable, Writable } from 'node:stream'
import { connectToServe } from '../serve/client.ts'

/** Relays until either side ends. @throws Failure SOURCE_UNREACHABLE */
export async function relayGate(
  socketPath: string,
  who: { readonly client: string; readonly peer: string | undefined },
  input: Readable,
  output: Writable,
): Promise<void> {
  const socket = await connectToServe(socketPath, {
    role: 'gate',
    client: who.client,
    ...(who.peer === undefined ? {} : { peer: who.peer }),
  })
  await new Promise<void>(resolve => {
    const end = (): void => {
      socket.destroy()
      resolve()
    }
    input.on('end', end).on('error', end).on('close', end)
    output.on('error', end)
    socket.on('close', end).on('error', end)
    input.pipe(socket, { end: false })
    socket.pipe(output, { end: false })
  })
}
