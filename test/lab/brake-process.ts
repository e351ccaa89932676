// Runs on a host: relays a unix socket to a TCP port, and holds the peer's bytes once so many have passed. It says
// `ready` and `held`; any line on its input lets everything through. brake-process.js SOCKET HOST PORT BYTES

import { connect, createServer } from 'node:net'
import { pipeline, Transform } from 'node:stream'

const [socket = '', host = '', port = '', bytes = ''] = process.argv.slice(2)
const waiting: (() => void)[] = []
let left = Number(bytes)

function hold(): Transform {
  return new Transform({
    transform(chunk: Buffer, _encoding, done) {
      left -= chunk.length
      const pass = (): void => done(null, chunk)
      if (left > 0) {
        pass()
        return
      }
      if (waiting.push(pass) === 1) process.stdout.write('held\n')
    },
  })
}

createServer(client => {
  const source = connect(Number(port), host)
  pipeline(source, hold(), client, () => undefined)
  pipeline(client, source, () => undefined)
}).listen(socket, () => process.stdout.write('ready\n'))

process.stdin.once('data', () => {
  left = Infinity
  for (const pass of waiting.splice(0)) pass()
})
