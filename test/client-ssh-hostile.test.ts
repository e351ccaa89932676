// The ssh transport against a source that is none of an sshd: it breaks the protocol, floods, or says nothing any more.

import t, { type Test } from 'tap'
import { readFileSync, writeFileSync } from 'node:fs'
import type { AddressInfo, Socket } from 'node:net'
import path from 'node:path'
import { text } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'
import ssh2, { type Connection } from 'ssh2'
import type { NamedSource } from '../client/source/source.ts'
import { sshPool } from '../client/source/ssh/pool.ts'
import { knowHosts, makeKey, sourceAt, sshFolder, startSshd } from './client/sshd.ts'
import { requires } from './nbd/requires.ts'

const skip = requires('/usr/sbin/sshd', 'ssh', 'ssh-keygen')
const never = new AbortController().signal
const MIB = 1024 * 1024
/** No divisor of the window: of a window that is used up exactly ssh2 drops what comes. */
const PACKET = 30_000
const FLOOD = 64 * MIB

/** What ssh2 keeps to itself: nothing that it gives to others lets a server break the protocol. */
interface Raw {
  readonly _sock: Socket
  readonly _protocol: {
    channelData(channel: number, bytes: Buffer): void
    channelExtData(channel: number, bytes: Buffer, type: 1): void
    channelEOF(channel: number): void
    channelSuccess(channel: number): void
    disconnect(reason: number): void
    requestFailure: () => void
  }
}

interface Hostile {
  /** A command was asked for. @param start says that it runs. @param channel its number */
  command?: (raw: Raw, channel: number, start: () => void) => void
  /** A login is good. @param accept says so */
  login?: (raw: Raw, accept: () => void) => void
  /** Whether the way to it leads through an honest host. */
  isBehind?: boolean | undefined
}

/** A server that lets anybody in and does as it is told. */
async function aHostile(t: Test, { command, login, isBehind }: Hostile): Promise<NamedSource> {
  const dir = sshFolder(t)
  const hostKey = path.join(dir, 'host')
  makeKey(hostKey)
  const server = new ssh2.Server({ hostKeys: [readFileSync(hostKey)] }, (client: Connection) => {
    const raw = client as Connection & Raw
    client.on('error', () => undefined)
    client.on('authentication', context => {
      if (context.method !== 'publickey' || !context.signature || !login) context.accept()
      else login(raw, () => context.accept())
    })
    client.on('session', accept => {
      const session = accept() as ReturnType<typeof accept> & {
        readonly _chanInfo: { readonly outgoing: { readonly id: number } }
      }
      const { id } = session._chanInfo.outgoing
      session.on('exec', accept => command?.(raw, id, () => void accept()))
    })
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  t.teardown(() => server.close())
  const { port } = server.address() as AddressInfo
  const mine = readFileSync(`${hostKey}.pub`, 'utf8').trim()
  if (isBehind !== true) {
    knowHosts(dir, `[127.0.0.1]:${port} ${mine}`)
    return sourceAt({ port })
  }
  const jump = await startSshd(t, dir, { allow: 'restrict,port-forwarding' }, 'jump')
  knowHosts(dir, `behind ${mine}`, `[127.0.0.1]:${jump.port} ${jump.hostKey()}`)
  const common = `UserKnownHostsFile ${dir}/known_hosts\n  IdentityFile ${dir}/id\n  IdentityAgent none\n`
  writeFileSync(
    path.join(dir, 'ssh_config'),
    `Host behind\n  HostName 127.0.0.1\n  HostKeyAlias behind\n  ProxyJump 127.0.0.1:${jump.port}\nHost *\n  ${common}`,
  )
  return { ...sourceAt({ port }), host: 'behind' }
}

/** Sends all of the flood, whatever the window, as long as the connection is there. @returns how much was sent */
async function flood(raw: Raw, channel: number): Promise<number> {
  const isOpen = (): boolean => raw._sock.writable
  let sent = 0
  for (; sent < FLOOD && isOpen(); sent += PACKET) {
    raw._protocol.channelData(channel, Buffer.alloc(PACKET, 'x'))
    while (isOpen() && raw._sock.writableLength > MIB) await sleep(1)
  }
  return sent
}

t.test('a source that sends more than the window is cut off', { skip }, async t => {
  for (const [isStarted, isBehind] of [
    [true, false],
    [false, false],
    [true, true],
  ]) {
    let sent: Promise<number> | undefined
    const source = await aHostile(t, {
      command: (raw, channel, start) => {
        if (isStarted) start()
        sent = flood(raw, channel)
      },
      isBehind,
    })
    const code = 'TRANSFER'
    const message = `${source.host} sends more through ssh than was allowed`
    await using pool = sshPool(source)
    if (isStarted) {
      const remote = await pool.exec('nbd a', never)
      t.match(await remote.over, { code, reason: message }, 'although nobody takes what it sends')
      await t.rejects(text(remote.output), { code, message })
    } else await t.rejects(pool.exec('nbd a', never), { code, message }, 'before it has started')
    t.ok(((await sent) ?? Infinity) < FLOOD / 2, `${await sent} bytes sent`)
  }
})

t.test('what comes after the end of a channel crashes nobody', { skip }, async t => {
  for (const isStarted of [true, false]) {
    const source = await aHostile(t, {
      command: ({ _protocol: protocol, _sock: socket }, channel, start) => {
        if (isStarted) start()
        protocol.channelEOF(channel)
        for (let times = 0; times < 2; times++) {
          protocol.channelExtData(channel, Buffer.from('more'), 1)
          protocol.channelData(channel, Buffer.from('more'))
        }
        setTimeout(() => socket.destroy(), 100)
      },
    })
    await using pool = sshPool(source)
    const exec = pool.exec('nbd a', never)
    if (isStarted) t.match(await (await exec).over, { code: 'SOURCE_UNREACHABLE' })
    else await t.rejects(exec, { code: 'SOURCE_UNREACHABLE' })
  }
})

t.test('a host that lets us in and ends it in the same breath is lost', { skip }, async t => {
  const source = await aHostile(t, {
    login: ({ _sock: socket, _protocol: protocol }, accept) => {
      socket.cork()
      accept()
      protocol.disconnect(2)
      socket.uncork()
    },
  })
  await using pool = sshPool(source)
  await t.rejects(pool.exec('gate', never), {
    code: 'SOURCE_UNREACHABLE',
    message: 'the ssh connection to 127.0.0.1 is lost: PROTOCOL_ERROR',
  })
})

t.test('a gate that says nothing is lost within 15 s, disks have longer', { skip }, async t => {
  const source = await aHostile(t, {
    command: ({ _protocol: protocol }, _channel, start) => {
      protocol.requestFailure = () => undefined
      start()
    },
  })
  await using pool = sshPool(source)
  const [gate, disk] = await Promise.all([pool.exec('gate', never), pool.exec('nbd a', never)])
  let isDiskLost = false
  void disk.over.then(() => (isDiskLost = true))
  const began = performance.now()
  t.match(await gate.over, {
    code: 'SOURCE_UNREACHABLE',
    reason: 'the ssh connection to 127.0.0.1 is lost: it said nothing for 15 s',
  })
  const took = performance.now() - began
  t.ok(took > 10_000 && took < 16_000, `${took} ms`)
  t.notOk(isDiskLost)
})

t.test('any byte is a sign of life, no byte is none', { skip }, async t => {
  const alive = { askMs: 100, silentMs: 600 }
  const dripMs = 2_000
  const source = await aHostile(t, {
    command: ({ _protocol: protocol }, channel, start) => {
      protocol.requestFailure = () => undefined
      start()
      const drip = setInterval(() => protocol.channelData(channel, Buffer.from('.')), 50)
      setTimeout(() => clearInterval(drip), dripMs)
    },
  })
  await using pool = sshPool(source, { gate: alive, disks: alive })
  const remote = await pool.exec('nbd a', never)
  const began = performance.now()
  await t.rejects(text(remote.output), { message: /it said nothing for 0.6 s/ })
  const took = performance.now() - began
  t.ok(took > dripMs && took < dripMs + 2_000, `${took} ms`)
})
