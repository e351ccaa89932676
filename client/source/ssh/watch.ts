// What ssh2 does not look at: how much a peer sends beyond what it was allowed, and whether it says anything at all.

import type { Duplex } from 'node:stream'
import type { Client, ClientChannel } from 'ssh2'
import { Failure } from '../../../shared/failures.ts'
import type { Hop } from './settings.ts'

/** When a host is taken for gone. */
export interface Alive {
  /** How often it is asked for a sign of life. */
  readonly askMs: number
  /** It may say nothing for so long, and be noticed by then. */
  readonly silentMs: number
}

export interface Watched {
  readonly hop: Hop
  /** Logged in. */
  readonly client: Client
  readonly socket: Duplex
  readonly silentMs: number
  /** Called once at most: the connection is to be ended at once. */
  readonly onFault: (why: Failure) => void
}

export interface Watch {
  /** Follows a channel, which then has an error before its end when it brought more than was allowed. */
  follow(channel: ClientChannel): void
  stop(): void
}

/**
 * ssh2 lets a peer send 2 MiB, and allows as much again while less than that is waiting to be taken; so nobody who keeps to
 * it makes us hold twice as much. It takes what comes beyond, however much that is.
 */
const MOST_HELD = 4 * 1024 * 1024
/** In how many parts silence is counted, so that a process that was stopped for a while itself counts one of them. */
const PARTS = 6

/** A channel is there, and may be flooded, before ssh2 gives it to anybody: that is when its command has started. */
interface WithChannels {
  readonly _chanMgr?: { update(id: number, channel: unknown): void }
}

/** Any byte is a sign of life: on a slow line the answer to our question comes after all that was sent before. */
export function watch({ hop, client, socket, silentMs, onFault }: Watched): Watch {
  const channels = new Set<ClientChannel>()
  let parts = 0

  function end(why: Failure): void {
    stop()
    onFault(why)
  }

  function onData(): void {
    parts = 0
    for (const channel of channels) {
      if (channel.readableLength + channel.stderr.readableLength <= MOST_HELD) continue
      const why = new Failure('TRANSFER', `${hop.name} sends more through ssh than was allowed`, {
        remedy: `find out what answers at ${hop.host}: an sshd does not do that`,
      })
      end(why)
      channel.emit('error', why)
      return
    }
  }

  const timer = setInterval(() => {
    if (++parts < PARTS) return
    const seconds = silentMs / 1000
    end(
      new Failure(
        'SOURCE_UNREACHABLE',
        `the ssh connection to ${hop.name} is lost: it said nothing for ${seconds} s`,
      ),
    )
  }, silentMs / PARTS)

  function stop(): void {
    clearInterval(timer)
    socket.off('data', onData)
    channels.clear()
  }

  function follow(channel: ClientChannel): void {
    if (channels.has(channel)) return
    channels.add(channel)
    channel.once('close', () => channels.delete(channel))
    // What comes after a channel's end is an error of the stream, and one that nobody listens to ends the process.
    for (const stream of [channel, channel.stderr]) stream.on('error', () => undefined)
  }

  const { _chanMgr: manager } = client as Client & WithChannels
  if (manager) {
    const update = manager.update.bind(manager)
    manager.update = (id, channel) => {
      update(id, channel)
      follow(channel as ClientChannel)
    }
  }
  socket.on('data', onData)
  return { follow, stop }
}
