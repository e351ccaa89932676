// Real NBD servers on Unix sockets, started for one test and ended with it, by process id.

import { spawn } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { temporary } from './fake-server.ts'
import { isListening } from './listening.ts'

interface TestLike {
  teardown(step: () => void): void
}

/** tap's own settings would make every child slow and noisy. */
function childEnvironment(): NodeJS.ProcessEnv {
  return Object.fromEntries(
    Object.entries(process.env).filter(
      ([name]) => name !== 'NODE_OPTIONS' && !name.startsWith('TAP'),
    ),
  )
}

/** Runs a server until the test ends; resolves when it listens. @throws with its stderr */
async function run(
  t: TestLike,
  tool: string,
  args: readonly string[],
  path: string,
): Promise<number> {
  const child = spawn(tool, args, { stdio: ['ignore', 'ignore', 'pipe'], env: childEnvironment() })
  let said = ''
  child.stderr.on('data', (part: Buffer) => (said += part.toString()))
  child.on('error', error => (said += error.message))
  t.teardown(() => child.kill('SIGKILL'))
  const atExit = (): boolean => child.kill('SIGKILL')
  process.once('exit', atExit)
  child.once('exit', () => process.off('exit', atExit))
  for (let tries = 0; !isListening(path); tries++) {
    if (child.exitCode !== null || tries > 500) throw new Error(`${tool} did not start: ${said}`)
    await new Promise(resolve => setTimeout(resolve, 10))
  }
  return child.pid ?? 0
}

/** nbdkit in the foreground: `nbdkit(t, ['memory', '1M'])`. Returns the socket's path and the process id. */
export async function nbdkit(
  t: TestLike,
  args: readonly string[],
): Promise<{ path: string; pid: number }> {
  const path = join(temporary(t), 'kit.sock')
  const pid = await run(
    t,
    'nbdkit',
    ['--foreground', '--exit-with-parent', '--unix', path, ...args],
    path,
  )
  return { path, pid }
}

/** qemu-nbd over a raw image, many clients, export name `disk`. */
export async function qemuNbd(t: TestLike, image: string): Promise<{ path: string }> {
  const path = join(temporary(t), 'qemu.sock')
  const args = ['-r', '-t', '-f', 'raw', '-x', 'disk', '-e', '4', '-k', path, image]
  await run(t, 'qemu-nbd', args, path)
  return { path }
}

/**
 * nbd-server as this project runs it: one process per connection, the connection as its file descriptor 0. Export
 * `disk`; hooks are shell lines.
 */
export async function nbdServer(
  t: TestLike,
  image: string,
  hooks: { prerun?: string; postrun?: string } = {},
): Promise<{ path: string }> {
  const folder = temporary(t)
  const config = join(folder, 'nbd.conf')
  const lines = [
    '[generic]',
    'port = 0',
    'allowlist = true',
    '[disk]',
    `exportname = ${image}`,
    'virtstyle = none',
    'readonly = true',
  ]
  for (const [key, line] of Object.entries(hooks)) lines.push(`${key} = ${line}`)
  writeFileSync(config, lines.join('\n') + '\n')
  const path = join(folder, 'nbd.sock')
  const pids = new Set<() => void>()
  const listener = createServer({ pauseOnConnect: true }, socket => {
    const child = spawn('nbd-server', ['-d', '-C', config], {
      stdio: [socket, 'ignore', 'ignore'],
      env: childEnvironment(),
    })
    const kill = (): void => void child.kill('SIGKILL')
    pids.add(kill)
    child.once('exit', () => pids.delete(kill)).once('error', () => pids.delete(kill))
    socket.destroy()
  })
  t.teardown(() => {
    listener.close()
    for (const kill of pids) kill()
  })
  await new Promise<void>(resolve => listener.listen(path, resolve))
  return { path }
}
