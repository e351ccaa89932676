// limitRate and --limit-rate: what may be written, what holds when, and that a pull keeps to it.

import t from 'tap'
import { randomBytes } from 'node:crypto'
import { pino } from 'pino'
import { NOBODY } from '../client/attempt.ts'
import { configShow } from '../client/commands/config.ts'
import { pullCommand } from '../client/commands/pull.ts'
import { loadConfig } from '../client/config/effective.ts'
import { standbySchema } from '../client/config/schema.ts'
import { program, type Command } from '../client/program.ts'
import { paced } from '../client/source/paced.ts'
import { parseConfig } from '../shared/config.ts'
import { createRate } from '../shared/rate.ts'
import { formatTimetable, limitAt, limitNow, parseTimetable } from '../shared/timetable.ts'
import { fakeSource } from './client/fake-source.ts'

const MIB = 1024 * 1024
const never = new AbortController().signal
const log = pino({ level: 'silent' })

t.test('a limit is a rate, off, or a timetable of them', t => {
  const table: [text: string, says: string][] = [
    ['off', 'off'],
    ['20MiB/s', '20 MiB/s'],
    [' 1.5 GiB/s ', '1.5 GiB/s'],
    ['262144/s', '256 KiB/s'],
    ['08:00 20MiB/s, 20:00 off', '08:00 20 MiB/s, 20:00 off'],
    ['20:00 off,8:00 20 MiB/s', '08:00 20 MiB/s, 20:00 off'],
    ['00:00 1MiB/s', '1 MiB/s'],
  ]
  for (const [text, says] of table) t.equal(formatTimetable(parseTimetable(text)), says, text)
  t.end()
})

t.test('what is no limit is told why', t => {
  const table: [text: string, why: RegExp][] = [
    ['', /"" is no limit: a limit is off, a rate such as 20MiB\/s/],
    ['20MiB', /"20MiB" is no limit/],
    ['20MB/s', /is no limit/],
    ['-1MiB/s', /is no limit/],
    ['0B/s', /below 256 KiB\/s/],
    ['255KiB/s', /below 256 KiB\/s: a source ends a session .* session\.floor \(64 KiB\/s\)/],
    ['9999999999TiB/s', /is no limit/],
    ['08:00 20MiB/s, off', /"off" is no time of day/],
    ['off, off', /"off" is no time of day/],
    ['24:00 off', /"24:00 off" is no time of day/],
    ['08:60 off', /is no time of day/],
    ['08:00', /is no time of day/],
    ['08:00 off,', /"" is no time of day/],
    ['08:00 off, 8:00 20MiB/s', /08:00 comes twice/],
    ['08:00 1KiB/s, 20:00 off', /below 256 KiB\/s/],
    [Array.from({ length: 49 }, () => '08:00 off').join(), /more than 48 times/],
  ]
  for (const [text, why] of table) t.throws(() => parseTimetable(text), { message: why }, text)
  t.end()
})

t.test('an entry holds from its minute to the next one, and the last one past midnight', t => {
  const day = parseTimetable('08:00 20MiB/s, 12:30 1MiB/s, 20:00 off')
  const table: [hours: number, minutes: number, limit: number | undefined][] = [
    [0, 0, undefined],
    [7, 59, undefined],
    [8, 0, 20 * MIB],
    [12, 29, 20 * MIB],
    [12, 30, MIB],
    [19, 59, MIB],
    [20, 0, undefined],
    [23, 59, undefined],
  ]
  for (const [hours, minutes, limit] of table) {
    t.equal(limitAt(day, hours * 60 + minutes), limit, `${hours}:${minutes}`)
    t.equal(limitNow(day, new Date(2026, 10, 20, hours, minutes, 59)), limit, 'by local time')
  }
  const night = parseTimetable('22:00 off, 06:00 1MiB/s, 23:00 2MiB/s')
  t.equal(limitAt(night, 0), 2 * MIB, 'what was last set before midnight')
  t.end()
})

t.test('limitRate is checked with the rest of standby.yaml, and shown with its origin', t => {
  const parse = (text: string) => parseConfig('standby.yaml', text, standbySchema)
  t.throws(() => parse('\nlimitRate: 20\n'), {
    code: 'USAGE',
    message: /^standby\.yaml:2: limitRate: a limit is off, a rate such as/,
  })
  t.throws(() => parse('limitRate: 64KiB/s\n'), {
    message: /:1: limitRate: 64KiB\/s is below 256 KiB\/s/,
  })
  const shown = (text: string) =>
    configShow(
      parse(`${text}sources: { a: { transport: unix } }\ndomains: { d: { source: a } }\n`),
      'd',
    )[0]?.values.find(({ key }) => key === 'limitRate')
  t.match(shown(''), { value: 'off', origin: 'built-in' })
  t.match(shown("limitRate: '08:00 20MiB/s, 20:00 off'\n"), {
    value: '08:00 20 MiB/s, 20:00 off',
    origin: 'the top level',
  })
  t.end()
})

t.test('--limit-rate takes one rate or off', async t => {
  const given = async (...argv: string[]): Promise<Command[]> => {
    const commands: Command[] = []
    await program(['pull', 'd', ...argv], async command => {
      commands.push(command)
    }).parseAsync()
    return commands
  }
  t.match(await given(), [{ limitRate: undefined }])
  t.match(await given('--limit-rate', '20MiB/s'), [{ limitRate: [{ limit: 20 * MIB }] }])
  t.match(await given('--limit-rate', 'off'), [{ limitRate: [{ limit: undefined }] }])
  await t.rejects(given('--limit-rate', '20'), {
    code: 'USAGE',
    message: /^--limit-rate 20: "20" is no limit/,
  })
  await t.rejects(given('--limit-rate', '08:00 20MiB/s'), { code: 'USAGE' })
})

t.test('a read that may not go yet has asked for nothing, and is let go by the signal', async t => {
  const asked: number[] = []
  const rate = createRate(() => 1000)
  const abort = new AbortController()
  const connection = {
    size: 3000,
    read: (offset: number) => Promise.resolve(void asked.push(offset)),
    disconnect: () => Promise.resolve(),
    destroy: () => undefined,
  }
  const limited = paced(connection, rate, abort.signal)
  await limited.read(0, new Uint8Array(1000))
  const waiting = limited.read(1000, new Uint8Array(1000))
  abort.abort(new Error('enough'))
  await t.rejects(waiting, { message: 'enough' })
  t.strictSame(asked, [0])
})

t.test(
  'all domains of a pull share one limit, and --limit-rate overrides the timetable',
  async t => {
    const disks = { vda: randomBytes(2 * MIB), vdb: randomBytes(2 * MIB) }
    const source = await fakeSource(disks)
    t.teardown(() => source[Symbol.asyncDispose]())
    const config = loadConfig(source.configFile)
    const { mydomain } = config.domains
    const two = {
      ...config,
      limitRate: parseTimetable('256KiB/s'),
      domains: { ...config.domains, other: { ...mydomain, domain: 'mydomain' } },
    }
    const seconds = async (limitRate?: ReturnType<typeof parseTimetable>): Promise<number> => {
      const command = { domains: [], all: true, ifDue: false, adopt: false, full: true }
      const began = performance.now()
      const { results, exit } = await pullCommand(
        two,
        { ...command, dryRun: false, limitRate },
        log,
        never,
        () => NOBODY,
      )
      t.equal(exit, 0, JSON.stringify(results))
      return (performance.now() - began) / 1000
    }
    const free = await seconds(parseTimetable('off'))
    t.ok(free < 10, `${free} s, and not the 32 of the timetable`)
    // 8 MiB in all: the first one goes at once, and each of the others when the ones before it are paid.
    const limited = await seconds(parseTimetable('4MiB/s'))
    t.ok(limited > 1.7, `${limited} s for 8 MiB at 4 MiB/s`)
  },
)
