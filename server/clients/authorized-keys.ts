// Lines of an authorized_keys file (sshd(8), AUTHORIZED_KEYS FILE FORMAT): the one that we write, and finding it again.

import path from 'node:path'
import { Failure } from '../../shared/failures.ts'
import type { PublicKey } from './public-key.ts'

/** One line of ours: the key may run the gate of this client, from these addresses, and nothing else. */
export function authorizedLine(
  key: PublicKey,
  command: string,
  from: readonly string[] | undefined,
): string {
  const options = [
    'restrict',
    ...(from === undefined ? [] : [`from="${from.join(',')}"`]),
    `command="${command}"`,
  ]
  return [options.join(','), key.type, key.blob, key.comment].join(' ').trimEnd()
}

/**
 * What sshd gives to the user's shell. @param program argv of clone-server; every word must mean itself to a shell
 * @param config where it is not the default: an absolute path
 */
export function forcedCommand(
  program: readonly string[],
  client: string,
  config: string | undefined,
): string {
  const words = [...program, 'gate', '--client', client]
  if (config !== undefined) words.push('--config', config)
  for (const word of words)
    if (!/^[A-Za-z0-9_.,+:@/-]+$/.test(word))
      throw new Failure('USAGE', `${JSON.stringify(word)} cannot stand in a forced command`, {
        remedy: 'use a path of A-Z a-z 0-9 _ . , + : @ / -',
      })
  return words.join(' ')
}

export interface KeyLine {
  /** The forced command, unquoted. */
  readonly command: string | undefined
  readonly type: string
  readonly blob: string
}

/** Reads one line; undefined for a comment, a blank line, and what is no key. */
export function readKeyLine(line: string): KeyLine | undefined {
  const text = line.trim()
  if (text === '' || text.startsWith('#')) return undefined
  // Options may be quoted, with spaces and escaped quotes in them, and end at the first space outside of quotes.
  const options = /^(?:[^\s"]|"(?:\\.|[^"\\])*")+/.exec(text)?.[0] ?? ''
  const isKeyType = /^(?:ssh|ecdsa|sk)-[A-Za-z0-9@.-]+$/.test(options)
  const rest = isKeyType ? text : text.slice(options.length).trim()
  const [type, blob] = rest.split(/\s+/)
  if (type === undefined || blob === undefined) return undefined
  const command = isKeyType
    ? undefined
    : /(?:^|,)command="((?:\\.|[^"\\])*)"/i.exec(options)?.[1]?.replaceAll('\\"', '"')
  return { command, type, blob }
}

/** Whether a forced command is exactly our gate for this client, wherever the program and its configuration are. */
export function isGateOf(command: string | undefined, client: string): boolean {
  const words = command?.split(' ') ?? []
  const at = words.indexOf('gate')
  const [, option, name, ...config] = words.slice(at)
  const isOurs =
    (at === 1 && path.basename(words[0] ?? '') === 'clone-server') ||
    (at === 2 && /\/server\/cli\.[jt]s$/.test(words[1] ?? ''))
  const endsRight = config.length === 0 || (config.length === 2 && config[0] === '--config')
  return isOurs && option === '--client' && name === client && endsRight
}

/**
 * The file with the client's line: in the place of its older ones, or at the end.
 * @throws Failure UNSAFE when the same key may do something else: sshd takes the first line that a key matches
 */
export function withLine(text: string, client: string, line: string): string {
  const ours = readKeyLine(line)
  const lines = text === '' ? [] : text.replace(/\n$/, '').split('\n')
  const at = lines.findIndex(one => isGateOf(readKeyLine(one)?.command, client))
  const kept = lines.filter((one, index) => {
    const read = readKeyLine(one)
    if (isGateOf(read?.command, client)) return index === at
    if (read?.blob !== ours?.blob) return true
    throw new Failure('UNSAFE', `line ${index + 1} has the same key, with other options`, {
      remedy: `remove that line, or give client ${client} a key of its own`,
    })
  })
  const place = at === -1 ? kept.length : at
  return [...kept.slice(0, place), line, ...kept.slice(place + 1), ''].join('\n')
}

/** The file without the client's lines, and how many those were. */
export function withoutLines(text: string, client: string): { text: string; removed: number } {
  const lines = text.split('\n')
  const kept = lines.filter(one => !isGateOf(readKeyLine(one)?.command, client))
  return { text: kept.join('\n'), removed: lines.length - kept.length }
}
