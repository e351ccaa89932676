// The one child that is a source's gate: `clone-server gate` here, or the same through ssh.

import { hostname } from 'node:os'
import { isName } from '../../shared/names.ts'
import type { Source } from '../config/schema.ts'

/** Bounds how long a dead network can look alive: 3 probes of 15 s, 20 s to connect. */
const SSH_OPTIONS = [
  'BatchMode=yes',
  'ConnectTimeout=20',
  'ServerAliveInterval=15',
  'ServerAliveCountMax=3',
]

/** The argument array that starts the gate; host, user and options were validated by the config's schema. */
export function gateCommand(source: Source): string[] {
  if (source.gate === 'local') return [...source.gateCommand, '--client', clientName(source)]
  const { user, port, identity, options = [] } = source.ssh ?? {}
  return [
    'ssh',
    '-T',
    ...[...options, ...SSH_OPTIONS].flatMap(option => ['-o', option]),
    ...(port === undefined ? [] : ['-p', String(port)]),
    ...(user === undefined ? [] : ['-l', user]),
    ...(identity === undefined ? [] : ['-i', identity]),
    '--',
    source.host ?? '',
    ...source.gateCommand.map(quoted),
  ]
}

function clientName(source: Source): string {
  const host = hostname()
  return source.client ?? (isName(host) ? host : 'standby')
}

/** ssh joins its words and hands them to the remote shell, so each is quoted for that shell. */
function quoted(word: string): string {
  return /^[A-Za-z0-9_@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`
}
