// What one connection may cost the source: nbd-server itself allocates whatever a read asks for.

import t from 'tap'
import { once } from 'node:events'
import { truncateSync } from 'node:fs'
import { readFile, writeFile } from 'node:fs/promises'
import { createConnection, createServer, type Socket } from 'node:net'
import { join } from 'node:path'
import { pino } from 'pino'
import { startNbdServer } from '../server/nbd-server/process.ts'
import { temporary } from './nbd/fake-server.ts'
import { requires } from './nbd/requires.ts'
import { bytes, text, u16, u32, u64 } from './nbd/wire.ts'

const MIB = 2 ** 20
const log = pino({ level: 'silent' })
const skip = requires('nbd-server', 'setpriv', 'prlimit')

/** Counts what the server says, up to `count` bytes or its end, which may be a reset. */
function take(socket: Socket, count: number): Promise<number> {
  return new Promise(resolve => {
    let got = 0
    const end = (): void => {
      socket.off('data', add).off('close', end).pause()
      resolve(got)
    }
    const add = (chunk: Buffer): void => {
      got += chunk.length
      if (got >= count) end()
    }
    socket.on('data', add).on('close', end).resume()
  })
}

t.test('a read of 3 GiB ends its connection, 32 MiB at a time are served', { skip }, async t => {
  const folder = temporary(t)
  const image = join(folder, 'disk.img')
  await writeFile(image, '')
  truncateSync(image, 4096 * MIB)
  const config = ['[generic]', 'port = 0', '[disk]', `exportname = ${image}`, 'readonly = true', '']

  const listener = createServer({ pauseOnConnect: true }).listen(join(folder, 'nbd.sock'))
  t.teardown(() => listener.close())
  await once(listener, 'listening')
  const accepted = once(listener, 'connection') as Promise<[Socket]>
  const client = createConnection(join(folder, 'nbd.sock'))
  client.on('error', () => undefined)
  t.teardown(() => client.destroy())
  const [socket] = await accepted
  const server = await startNbdServer(folder, '1', config.join('\n'), socket, log)
  t.teardown(() => server.kill())

  t.equal(await take(client, 18), 18, 'its greeting')
  client.write(bytes(u32(3), text('IHAVEOPT'), u32(1), u32(4), text('disk')))
  t.equal(await take(client, 10), 10, 'the size and flags of the export')
  const ask = (length: number): boolean =>
    client.write(bytes(u32(0x25609513), u16(0), u16(0), u64(1), u64(0), u32(length)))

  for (let request = 0; request < 4; request++) ask(32 * MIB)
  t.equal(await take(client, 4 * (16 + 32 * MIB)), 4 * (16 + 32 * MIB), 'served')
  ask(3072 * MIB)
  t.equal(await take(client, 16 + 3072 * MIB), 0, 'not a byte of it')
  client.destroy()
  await server.ended
  t.notOk(server.isRunning())
  await t.rejects(readFile(join(folder, '1', 'nbd-server.conf')), { code: 'ENOENT' })
})
