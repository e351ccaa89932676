// Whether somebody listens on a Unix socket: its file is there a moment before.

import { readFileSync } from 'node:fs'

/** The kernel's flag of a socket that takes connections. */
const ACCEPTS = ' 00010000 '

export function isListening(path: string): boolean {
  const lines = readFileSync('/proc/net/unix', 'utf8').split('\n')
  return lines.some(line => line.includes(ACCEPTS) && line.endsWith(` ${path}`))
}
