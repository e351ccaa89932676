// Why a program ended, from what it wrote to stderr and its exit status.

import type { Readable } from 'node:stream'
import { FAILURES, type FailureCode } from '../../shared/failures.ts'
import { harmless } from './harmless.ts'

/** How a program that we talked to ended. */
export interface Ending {
  readonly code: FailureCode
  readonly reason: string
  readonly remedy?: string | undefined
}

/** What is kept of stderr. */
const TAIL = 4096

/**
 * Follows stderr for the reason when a program ends: its last line that is not indented, because our own programs put hint
 * and code under their sentence. Safe to print.
 */
export function lastWords(stderr: Readable): () => { reason: string; remedy: string | undefined } {
  let tail = ''
  stderr.setEncoding('utf8').on('data', (text: string) => {
    tail = (tail + text).slice(-TAIL)
  })
  return () => {
    const lines = tail.split('\n')
    const at = lines.findLastIndex(line => /^\S/.test(line))
    const hint = lines.slice(at + 1).find(line => line.startsWith('  hint: '))
    const remedy = hint?.slice('  hint: '.length).trim()
    return harmless({ reason: lines[at]?.trim() ?? '', remedy })
  }
}

/** What our own programs' exit status says, or a shell's that has no such command. */
export function codeOfExit(exit: number | undefined): FailureCode {
  if (exit === 2 || exit === 126 || exit === 127) return 'SOURCE_REFUSED'
  const codes = Object.keys(FAILURES) as FailureCode[]
  const code = codes.find(one => one !== 'INTERNAL' && FAILURES[one].exit === exit)
  return code === undefined || code === 'INTERRUPTED' ? 'SOURCE_UNREACHABLE' : code
}
