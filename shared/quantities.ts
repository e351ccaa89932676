// Sizes (bytes), shares of a size, durations (milliseconds) and ages: how config writes them and how people read them.

import ms, { type StringValue } from 'ms'
import { z } from 'zod'
import { Failure } from './failures.ts'

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB'] as const

/** Parses `20MiB`, `512 KiB`, `4096`; bytes, or undefined when it is no size. */
export function parseSize(text: string): number | undefined {
  const match = /^(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB)?$/.exec(text.trim())
  if (!match) return undefined
  const unit = UNITS.indexOf((match[2] ?? 'B') as (typeof UNITS)[number])
  const bytes = Math.round(Number(match[1]) * 1024 ** unit)
  return Number.isSafeInteger(bytes) ? bytes : undefined
}

/** @param bytes 0 or more */
export function formatSize(bytes: number): string {
  let unit = 0
  while (unit < UNITS.length - 1 && bytes >= 1024 ** (unit + 1)) unit++
  const value = bytes / 1024 ** unit
  return `${unit === 0 || Number.isInteger(value) ? value : value.toFixed(1)} ${UNITS[unit] ?? 'B'}`
}

/** A duration as people say it, e.g. `3h 12m`, `45s`, `0.8s`. @param milliseconds 0 or more */
export function formatDuration(milliseconds: number): string {
  if (milliseconds < 10_000) return `${(milliseconds / 1000).toFixed(1)}s`
  const seconds = Math.round(milliseconds / 1000)
  if (seconds < 60) return `${seconds}s`
  const minutes = Math.floor(seconds / 60)
  if (minutes < 60) return `${minutes}m ${seconds % 60}s`
  const hours = Math.floor(minutes / 60)
  if (hours < 48) return `${hours}h ${minutes % 60}m`
  return `${Math.floor(hours / 24)}d ${hours % 24}h`
}

const MAX_DURATION = 20 * 86400_000

const MAX_AGE = 3650 * 86400_000

const milliseconds = z
  .string()
  .regex(
    /^\d+(\.\d+)?\s*(ms|s|m|h|d|w)$/,
    'a duration is a number with ms, s, m, h, d or w, e.g. 4h',
  )
  .transform(text => ms(text as StringValue))

/** Config value `4h`, `90s`, `1d`; parsed to milliseconds. A bare number is refused: its unit would be a guess. */
export const duration = milliseconds
  // Node's timers end at 24.8 days, and a zero would mean "no limit" to some of them.
  .refine(value => value >= 1000 && value <= MAX_DURATION, 'a duration here is from 1s to 20d')

/** As `duration`, for ages that no timer waits for. */
export const age = milliseconds.refine(
  value => value >= 1000 && value <= MAX_AGE,
  'an age here is from 1s to 3650d',
)

/** An option's value, as in the configuration. @returns milliseconds. @throws Failure USAGE naming the option */
export function parseDuration(option: string, text: string): number {
  const parsed = duration.safeParse(text)
  if (parsed.success) return parsed.data
  throw new Failure('USAGE', `${option} ${text}: ${parsed.error.issues[0]?.message ?? 'wrong'}`)
}

/** Config value `20MiB`; parsed to bytes. */
export const size = z
  .union([z.string(), z.number().int().nonnegative()])
  .transform((value, context) => {
    const bytes = parseSize(String(value))
    if (bytes === undefined) {
      context.addIssue('a size is a number with B, KiB, MiB, GiB or TiB, e.g. 20MiB')
      return z.NEVER
    }
    return bytes
  })

/** A part of something: `20%` of it, or so many bytes whatever it is. */
export type Share = number | `${number}%`

function isPercent(text: string): text is `${number}%` {
  return /^\d+(\.\d+)?%$/.test(text) && Number(text.slice(0, -1)) <= 100
}

/** Config value `20%`, or a size such as `20GiB`; parsed to `20%`, or to bytes. */
export const share = z
  .union([z.string(), z.number().int().nonnegative()])
  .transform((value, context): Share => {
    const text = String(value).trim()
    const parsed = isPercent(text) ? text : parseSize(text)
    if (parsed !== undefined) return parsed
    context.addIssue('a share is a percentage from 0% to 100%, or a size, e.g. 20% or 20GiB')
    return z.NEVER
  })

/** @returns bytes, a whole number. @param whole bytes, 0 or more */
export function shareOf(part: Share, whole: number): number {
  return typeof part === 'number' ? part : Math.round((Number(part.slice(0, -1)) / 100) * whole)
}

const perSecond =
  (least: number) =>
  (text: string, context: z.RefinementCtx): number => {
    const bytes = text.endsWith('/s') ? parseSize(text.slice(0, -2)) : undefined
    if (bytes !== undefined && bytes >= least) return bytes
    context.addIssue(`a rate is a size a second, e.g. 20MiB/s, and at least ${formatSize(least)}/s`)
    return z.NEVER
  }

/** Config value `20MiB/s`; parsed to bytes per second. */
export const rate = (least: number) => z.string().transform(perSecond(least))

/** Config value `20MiB/s`, or `off` for no limit; parsed to bytes per second, or 0. */
export const rateOrOff = (least: number) =>
  z.string().transform((text, context) => (text === 'off' ? 0 : perSecond(least)(text, context)))
