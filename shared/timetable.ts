// A limit in bytes per second as people write it: a rate, `off`, or a timetable of both by this host's wall clock.

import { z } from 'zod'
import { Failure } from './failures.ts'
import { formatSize, parseSize } from './quantities.ts'

/** From a minute of the day on. */
interface Entry {
  /** Minutes since midnight, local time. */
  readonly from: number
  /** Bytes per second; undefined: no limit. */
  readonly limit: number | undefined
}
/** By time of day; the last entry holds past midnight until the first one. Never empty. */
export type Timetable = readonly Entry[]

export const UNLIMITED: Timetable = [{ from: 0, limit: undefined }]

/** Four times the source's floor: below that, a pull that keeps to its limit would look like one that stands still. */
export const LEAST_RATE = 256 * 1024

/** The most entries of a day that anybody can want; more is a mistake. */
const MOST_ENTRIES = 48
const RULE =
  "a limit is off, a rate such as 20MiB/s, or a timetable of them such as '08:00 20MiB/s, 20:00 off'"

/** `20MiB/s`, or `off`. @returns bytes per second, undefined for `off`. @throws Error saying what is wrong */
function parseLimit(text: string): number | undefined {
  if (text === 'off') return undefined
  const rate = text.endsWith('/s') ? parseSize(text.slice(0, -2)) : undefined
  if (rate === undefined) throw new Error(`${JSON.stringify(text)} is no limit: ${RULE}`)
  if (rate < LEAST_RATE)
    throw new Error(
      `${text} is below 256 KiB/s: a source ends a session that moves less than its session.floor (64 KiB/s) for 60 s`,
    )
  return rate
}

/** `08:00 20MiB/s`. */
function parseEntry(text: string): Entry {
  const [, hours, minutes, limit] = /^([01]?\d|2[0-3]):([0-5]\d)\s+(.+)$/.exec(text) ?? []
  if (hours === undefined || minutes === undefined || limit === undefined)
    throw new Error(
      `${JSON.stringify(text)} is no time of day from 00:00 to 23:59 and a limit: ${RULE}`,
    )
  return { from: Number(hours) * 60 + Number(minutes), limit: parseLimit(limit) }
}

/** Reads a limit or a timetable. Pure. @throws Error saying what is wrong */
export function parseTimetable(text: string): Timetable {
  const parts = text.split(',').map(part => part.trim())
  const [first = ''] = parts
  if (parts.length === 1 && !/^\d+:/.test(first)) return [{ from: 0, limit: parseLimit(first) }]
  if (parts.length > MOST_ENTRIES) throw new Error(`more than ${MOST_ENTRIES} times of a day`)
  const entries = parts.map(parseEntry).sort((a, b) => a.from - b.from)
  entries.forEach(({ from }, at) => {
    if (entries[at - 1]?.from === from) throw new Error(`${clock(from)} comes twice`)
  })
  return entries
}

/** What holds at a time of day. Pure. @param minute since midnight @returns bytes per second; undefined: no limit */
export function limitAt(timetable: Timetable, minute: number): number | undefined {
  return (timetable.findLast(({ from }) => from <= minute) ?? timetable.at(-1))?.limit
}

/** What holds now, by the local time of this host. */
export function limitNow(timetable: Timetable, now = new Date()): number | undefined {
  return limitAt(timetable, now.getHours() * 60 + now.getMinutes())
}

const clock = (minutes: number): string =>
  [Math.floor(minutes / 60), minutes % 60].map(part => String(part).padStart(2, '0')).join(':')

/** As it is written, with one entry for each change. */
export function formatTimetable(timetable: Timetable): string {
  const say = ({ limit }: Entry): string => (limit === undefined ? 'off' : `${formatSize(limit)}/s`)
  const [only] = timetable
  if (timetable.length === 1 && only) return say(only)
  return timetable.map(entry => `${clock(entry.from)} ${say(entry)}`).join(', ')
}

/** Config value; parsed to a timetable. */
export const timetable = z.string({ error: RULE }).transform((text, context): Timetable => {
  try {
    return parseTimetable(text)
  } catch (error) {
    context.addIssue((error as Error).message)
    return z.NEVER
  }
})

/** An option's value: `off` or one rate. @throws Failure USAGE naming the option */
export function parseRate(option: string, text: string): Timetable {
  try {
    return [{ from: 0, limit: parseLimit(text) }]
  } catch (error) {
    throw new Failure('USAGE', `${option} ${text}: ${(error as Error).message}`, { cause: error })
  }
}
