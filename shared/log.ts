// Logging for both programs: pino on stderr, pretty on a terminal, JSON lines elsewhere.

import { destination, pino, stdSerializers, type Logger } from 'pino'
import pretty from 'pino-pretty'
import type { LogLevel } from './log-level.ts'

export type Log = Logger

/** @param level what to print; a terminal gets one readable line per step, anything else JSON lines */
export function createLog(program: string, level: LogLevel): Log {
  const serializers = { err: stdSerializers.err, error: stdSerializers.err }
  const options = {
    name: program,
    level,
    serializers,
    redact: ['token', '*.token', 'nvram', '*.password'],
  }
  if (!process.stderr.isTTY) {
    const stderr = destination({ fd: 2, sync: true })
    // Who closes our stderr loses the log, not the session.
    stderr.on('error', () => undefined)
    return pino(options, stderr)
  }
  return pino(
    options,
    pretty({
      destination: 2,
      sync: true,
      ignore: 'pid,hostname,name',
      translateTime: 'SYS:HH:MM:ss',
    }),
  )
}
