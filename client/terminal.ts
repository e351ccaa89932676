// The person at the terminal: told things on stderr, asked for passphrases without echo.

import { createInterface } from 'node:readline/promises'
import { Writable } from 'node:stream'
import type { User } from './source/user.ts'

/** @param acceptsNewHostKeys what that person said on the command line */
export function userAt(
  input: NodeJS.ReadStream,
  output: NodeJS.WriteStream,
  acceptsNewHostKeys: boolean,
): User {
  const isThere = input.isTTY && output.isTTY
  return {
    acceptsNewHostKeys,
    tell: text => void output.write(`${text}\n`),
    ask: isThere ? (question, signal) => askHidden(input, output, question, signal) : undefined,
  }
}

async function askHidden(
  input: NodeJS.ReadStream,
  output: NodeJS.WriteStream,
  question: string,
  signal: AbortSignal,
): Promise<string> {
  const nowhere = new Writable({ write: (_bytes, _encoding, done) => done() })
  const lines = createInterface({ input, output: nowhere, terminal: true })
  output.write(question)
  // Ctrl-C comes as a key while the terminal is read key by key.
  lines.on('SIGINT', () => process.kill(process.pid, 'SIGINT'))
  try {
    const left = new Promise<string>(resolve => lines.once('close', () => resolve('')))
    return await Promise.race([lines.question('', { signal }), left])
  } catch (error) {
    signal.throwIfAborted()
    throw error
  } finally {
    lines.close()
    output.write('\n')
  }
}
