// All ssh connections of one command to one source: opened when they are needed, shared, and closed together.

import { Cleanup } from '../../../shared/cleanup.ts'
import { Failure } from '../../../shared/failures.ts'
import { orAborted } from '../or-aborted.ts'
import type { NamedSource } from '../source.ts'
import { agents } from './agent.ts'
import { NoMoreChannels, startCommand, type RemoteCommand } from './command.ts'
import { findKeys, unlock, type Unlocked } from './keys.ts'
import { logIn, type SshConnection } from './login.ts'
import { sshHops, type Hop } from './settings.ts'
import type { Alive } from './watch.ts'

/**
 * Commands on one connection. sshd takes ten by default (MaxSessions), but what TCP lets one connection have under way is no more
 * than a few streams need on a long line.
 */
const CHANNELS = 3
/**
 * When a host is taken for gone: a gate must be back before its lease lapses after 30 s, disks before their session has
 * moved nothing for 60 s. On a slow line the disks' may be quiet for longer while all is well.
 */
const ALIVE: Record<'gate' | 'disks', Alive> = {
  gate: { askMs: 5_000, silentMs: 15_000 },
  disks: { askMs: 10_000, silentMs: 30_000 },
}

export interface SshPool extends AsyncDisposable {
  /**
   * Runs a command on the source, over a connection of such commands that has room or a new one.
   * @throws Failure as logIn; SOURCE_REFUSED; the signal's reason
   */
  exec(command: string, signal: AbortSignal): Promise<RemoteCommand>
}

/** One connection with the hops that it goes through. */
interface Route extends AsyncDisposable {
  readonly connection: SshConnection
}

interface Member {
  /** The first word of its commands. */
  readonly kind: string
  readonly route: Promise<Route>
  /** Channels that are open, or being opened. */
  used: number
  /** How many sshd takes. */
  most: number
}

/** Connects to nothing yet. @param source with a host */
export function sshPool(source: NamedSource, alive = ALIVE): SshPool {
  const closed = new AbortController()
  const members = new Set<Member>()
  const unlocked: Unlocked = new Map()
  const asked = agents()
  let hops: Promise<Hop[]> | undefined

  async function openRoute(kind: string): Promise<Route> {
    const way = await (hops ??= sshHops(source, closed.signal))
    const cleanup = new Cleanup()
    try {
      let connection: SshConnection | undefined
      for (const hop of way) {
        const next: SshConnection = await logInByAnyKey(hop, kind, connection)
        cleanup.defer(() => next.close())
        connection = next
      }
      if (!connection) throw new Failure('INTERNAL', 'there is no way to the source')
      return { connection, [Symbol.asyncDispose]: () => cleanup[Symbol.asyncDispose]() }
    } catch (error) {
      await cleanup[Symbol.asyncDispose]()
      throw error
    }
  }

  /** With the keys that need nobody; if those are refused, with those that a passphrase opens. */
  async function logInByAnyKey(
    hop: Hop,
    kind: string,
    through: SshConnection | undefined,
  ): Promise<SshConnection> {
    const { signal } = closed
    const how = { through, alive: kind === 'gate' ? alive.gate : alive.disks, signal }
    const keys = await findKeys(hop, unlocked, asked)
    try {
      return await logIn(hop, source, keys, how)
    } catch (error) {
      const isRefused = error instanceof Failure && error.code === 'SOURCE_REFUSED'
      if (!isRefused || !(await unlock(keys.locked, unlocked, source.user, signal))) throw error
      return await logIn(hop, source, await findKeys(hop, unlocked, asked), how)
    }
  }

  /**
   * A place for one more channel; taken at once, so that those who ask at the same time get others. The gate shares no
   * connection with disks: a source that loses both at once takes us for dead.
   */
  function takePlace(kind: string): Member {
    let member = [...members].find(one => one.kind === kind && one.used < one.most)
    if (!member) {
      const route = openRoute(kind)
      const made: Member = { kind, route, used: 0, most: CHANNELS }
      member = made
      members.add(made)
      route.then(
        opened =>
          opened.connection.onEnd(() => {
            made.most = 0
            // The hosts on the way are still connected.
            void opened[Symbol.asyncDispose]()
          }),
        () => members.delete(made),
      )
    }
    member.used++
    return member
  }

  return {
    async exec(command, signal) {
      for (let lost = 0; ;) {
        closed.signal.throwIfAborted()
        signal.throwIfAborted()
        const member = takePlace(command.split(' ', 1)[0] ?? '')
        try {
          const { connection } = await orAborted(member.route, signal)
          const starting = startCommand(connection, command).catch((error: unknown) => {
            // Whoever asks next is not to be sent there, although its end is not known yet.
            if (connection.loss() !== undefined) member.most = 0
            throw error
          })
          // Nobody waits for it any more: it is ended when it comes.
          const started = await orAborted(starting, signal).catch((error: unknown) => {
            starting.then(
              late => late.abandon(),
              () => undefined,
            )
            throw error
          })
          void started.over.then(() => member.used--)
          return started
        } catch (error) {
          member.used--
          // Lost before it had begun; another connection that is lost as soon is told.
          if (member.most === 0 && lost++ === 0) continue
          if (!(error instanceof NoMoreChannels)) throw error
          if (member.used === 0)
            throw new Failure(
              'SOURCE_REFUSED',
              `${source.host ?? ''} takes no command: ${error.message}`,
            )
          member.most = member.used
        }
      }
    },
    async [Symbol.asyncDispose]() {
      closed.abort(new Failure('INTERNAL', 'the connections were closed'))
      asked.close()
      await Promise.all(
        [...members].map(async ({ route }) => {
          const made = await route.catch(() => undefined)
          await made?.[Symbol.asyncDispose]()
        }),
      )
    },
  }
}
