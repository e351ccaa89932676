// What must hold of every reader of foreign input: what it accepts is whole, what it refuses is named, and it comes back.

import fc from 'fast-check'
import { createHash } from 'node:crypto'
import { closeSync, mkdirSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { PassThrough, type Duplex } from 'node:stream'
import { isDeepStrictEqual } from 'node:util'
import { configShow } from '../../client/commands/config.ts'
import { standbySchema } from '../../client/config/schema.ts'
import { checkDefinitions } from '../../client/source/definition.ts'
import { generationSchema, readGeneration } from '../../client/store/generation.ts'
import { appendHistory, checkHistory } from '../../client/store/history.ts'
import { layoutOf } from '../../client/store/layout.ts'
import { readDigests } from '../../client/store/manifest.ts'
import { readState } from '../../client/store/state.ts'
import { readJournal } from '../../client/store/undo.ts'
import { showDomain } from '../../server/commands/config.ts'
import { sourceSchema } from '../../server/config/schema.ts'
import { readDomainXml } from '../../server/libvirt/domain-xml.ts'
import { WORDS } from '../../server/serve/words.ts'
import { parseConfig } from '../../shared/config.ts'
import { Failure, FAILURES } from '../../shared/failures.ts'
import { GATE } from '../../shared/gate.ts'
import { exportName, isName, isRecoveryPointId, newRecoveryPointId } from '../../shared/names.ts'
import { openNbd } from '../../shared/nbd/client.ts'
import { parseSize } from '../../shared/quantities.ts'
import { rpcConnection } from '../../shared/rpc.ts'
import { formatTimetable, parseTimetable } from '../../shared/timetable.ts'
import { generationOf } from '../client/generations.ts'
import { ROOT } from '../lab/names.ts'
import { pair } from '../nbd/fake-server.ts'
import * as wire from '../nbd/wire.ts'
import { damaged, distorted } from './damage.ts'

export interface Fuzzed {
  readonly name: string
  readonly property: fc.IRawProperty<unknown>
  /** Runs of `npm test`. */
  readonly runs: number
}

/** Whether a failure is one of these codes, and says why in a sentence that does not flood. */
function isNamed(error: unknown, ...codes: (keyof typeof FAILURES)[]): boolean {
  if (error instanceof Failure && codes.includes(error.code) && error.message.length < 100_000)
    return true
  throw error
}

/** Accepted, or refused by name. */
function isOrderly(action: () => unknown, ...codes: (keyof typeof FAILURES)[]): boolean {
  try {
    action()
    return true
  } catch (error) {
    return isNamed(error, ...codes)
  }
}

const sha256 = (text: string): string => createHash('sha256').update(text).digest('hex')
/** What no reader may have touched. */
const isUnpolluted = (): boolean => Object.keys(Object.prototype).length === 0 && !('xyzzy' in {})

// NBD

const CONTENT = wire.pattern(4096)
const HANDSHAKE = Buffer.concat([
  wire.greeting(),
  wire.ack(8),
  wire.exportInfo(7, 4096),
  wire.blockSize(7, 1, 4096, 65536),
  wire.ack(7),
])
const REPLIES = Buffer.concat([
  wire.data(1, 0, CONTENT.subarray(0, 100)),
  wire.data(2, 1000, CONTENT.subarray(1000, 1500)),
  wire.hole(1, 100, 300),
  wire.error(2, 5, 'broken'),
  wire.data(1, 400, CONTENT.subarray(400, 1000), 1),
])
const turn = (): Promise<void> => new Promise(resolve => setImmediate(resolve))

/** Writes bytes cut here and there. */
async function inPieces(to: Duplex, bytes: Buffer, where: readonly number[]): Promise<void> {
  const at = where.map(one => one % Math.max(1, bytes.length)).sort((a, b) => a - b)
  for (const [number, end] of [...at, bytes.length].entries()) {
    if (to.destroyed) return
    to.write(bytes.subarray(at[number - 1] ?? 0, end))
    await turn()
  }
}

/** What two reads make of a server that says these bytes, and then ends. */
async function readFrom(
  handshake: Buffer,
  replies: Buffer,
  where: readonly number[],
): Promise<PromiseSettledResult<Buffer>[]> {
  const [ours, theirs] = pair()
  theirs.on('error', () => undefined).on('data', () => undefined)
  const opening = openNbd(ours, { exportName: 'a/b' })
  const opened = opening.then(
    nbd => ({ nbd }),
    (reason: unknown) => ({ reason }),
  )
  await inPieces(theirs, handshake, where)
  const reading = opened.then(async found => {
    if (!('nbd' in found)) return [{ status: 'rejected', reason: found.reason } as const]
    const into = [Buffer.alloc(1000), Buffer.alloc(500)] as const
    const reads = [found.nbd.read(0, into[0]), found.nbd.read(1000, into[1])]
    const settled = await Promise.allSettled(reads)
    found.nbd.destroy()
    return settled.map((one, at): PromiseSettledResult<Buffer> =>
      one.status === 'rejected' ? one : { status: 'fulfilled', value: into[at] ?? into[0] },
    )
  })
  await turn()
  await inPieces(theirs, replies, where)
  theirs.end()
  return reading
}
const named = (one: PromiseSettledResult<unknown>): boolean =>
  one.status === 'fulfilled' ||
  isNamed(one.reason, 'TRANSFER', 'SOURCE_REFUSED', 'SOURCE_UNREACHABLE')
const cuts = fc.array(fc.nat(5000), { maxLength: 5 })

// Gate

const ID = '20261120T030007Z-4f2a'
const UUID = '0d3b9a52-7a0e-4a53-8f4e-6f0d6b2b7c11'
const TOKEN = 'a'.repeat(32)
const DOMAIN_XML = `<domain type='kvm'><name>web</name><uuid>${UUID}</uuid><os><type arch='x86_64' machine='q35'>hvm</type><nvram>/x.fd</nvram></os><devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/a.qcow2'/><target dev='vda'/></disk><interface type='network'><source network='default'/></interface></devices><title>B&#252;ro &amp; K</title></domain>`
const INFO = {
  recoveryPoint: { id: ID, instant: '2026-11-20T03:00:07.000Z', consistency: 'quiesced' },
  uuid: UUID,
  disks: [{ target: 'vda', format: 'raw', size: 4096 }],
  inactiveXml: DOMAIN_XML,
  liveXml: '',
  nvram: null,
  networks: [{ name: 'default', xml: '<network><name>default</name></network>' }],
  pools: [],
  host: { libvirt: '9', qemu: '7', arch: 'x86_64', machine: 'q35', cpu: 'x' },
  freezeMs: 1,
  snapshotMs: 2,
}
const HELLO = {
  protocol: { min: 1, max: 1 },
  version: '0.1.0',
  clockMs: 1,
  clone: { name: 'web', role: 'standby', epoch: 0 },
}
const SAID: readonly unknown[] = [
  INFO,
  HELLO,
  {
    protocol: 1,
    version: '1',
    clockMs: 1,
    hostId: UUID,
    role: 'source',
    epoch: 0,
    features: ['digests'],
  },
  {
    domain: 'web',
    uuid: UUID,
    state: 'running',
    disks: [{ target: 'vda', exported: true, format: 'raw', size: 1, allocated: 1 }],
  },
  { token: TOKEN, target: 'vda', chunk: 0, count: 1 },
  { digests: ['a'.repeat(64)] },
  {
    state: 'failed',
    reason: 'x',
    code: 'TRANSFER',
    disks: [],
    refusals: [{ at: '2026-11-20T03:00:07Z', export: 'a/b', code: 'UNSAFE', reason: 'x' }],
  },
]
const SHAPES = [...Object.values(GATE), ...Object.values(WORDS)].flatMap(({ params, result }) => [
  params,
  result,
])

const LINES = Buffer.from(
  [
    { jsonrpc: '2.0', id: 1, method: 'hello', params: HELLO },
    {
      jsonrpc: '2.0',
      method: 'session.ended',
      params: { token: TOKEN, reason: 'x', code: 'UNSAFE' },
    },
    { jsonrpc: '2.0', id: 'b', method: 'nothing.like.it', params: [1] },
    { jsonrpc: '2.0', id: 77, result: {} },
    { jsonrpc: '2.0', method: '$/cancelRequest', params: { id: 1 } },
    { jsonrpc: '2.0', id: 2, method: 'hello', params: HELLO },
  ]
    .map(one => `${JSON.stringify(one)}\n`)
    .join(''),
)

/** A side that hears these bytes answers, or hangs up; what a handler gets is what JSON-RPC calls a message. */
async function hear(bytes: Buffer, at: readonly number[]): Promise<boolean> {
  const [input, output] = [new PassThrough(), new PassThrough()]
  output.resume()
  const rpc = rpcConnection(input, output)
  let sane = true
  rpc.onRequest('hello', (params: unknown) => {
    sane &&= typeof params === 'object' || params === undefined
    return {}
  })
  rpc.onNotification('session.ended', (params: unknown) => {
    sane &&= typeof params === 'object' || params === undefined
  })
  rpc.onError(() => undefined)
  const over = new Promise(resolve => rpc.onClose(() => resolve(undefined)))
  rpc.listen()
  let from = 0
  for (const cut of [...at.map(one => one % bytes.length).sort((a, b) => a - b), bytes.length]) {
    if (!input.destroyed) input.write(bytes.subarray(from, cut))
    from = cut
  }
  if (!input.destroyed) input.end()
  await over
  rpc.dispose()
  return sane
}

// Files

const GENERATION = generationOf(1, { vda: { bytes: Buffer.alloc(4096, 1) } })
const STATE = {
  ...{
    schema: 1,
    role: 'standby',
    epoch: 0,
    selected: 'newest',
    lastSeq: 3,
    attempts: 4,
    failures: 0,
  },
  bound: { hostId: UUID, domainUuid: UUID },
  lastAttempt: { at: '2026-11-20T03:00:07Z', outcome: 'merged' },
}
const shape = { format: 'raw', size: 4096 }
const UNDO = {
  ...{ schema: 1, step: 'saving', to: ID },
  state: { selected: 'newest', lastSeq: 2, bound: null },
  disks: [{ target: 'vda', from: ID, before: shape, after: shape }],
}
const MANIFEST = Buffer.from(
  Array.from({ length: 8 }, (_, at) => `${sha256(String(at))}\n`).join(''),
)

const texts = (value: object): fc.Arbitrary<string> => {
  const good = JSON.stringify(value)
  return fc.oneof(
    distorted(value).map(one => JSON.stringify(one)),
    damaged(Buffer.from(good)).map(bytes => bytes.toString('latin1')),
    fc.string(),
  )
}

/** @param dir a private folder that the caller removes */
export function properties(dir: string): Fuzzed[] {
  const layout = layoutOf(path.join(dir, 'clone'))
  const folder = path.join(layout.generations, GENERATION.recoveryPoint.id)
  mkdirSync(folder, { recursive: true })
  const all: Fuzzed[] = []
  const add = <T>(name: string, runs: number, property: fc.IRawProperty<T>): void =>
    void all.push({ name, runs, property: property })

  add(
    'NBD: a good server is understood wherever its bytes are cut',
    40,
    fc.asyncProperty(cuts, async where => {
      const [first, second] = await readFrom(HANDSHAKE, REPLIES, where)
      const wanted = Buffer.concat([
        CONTENT.subarray(0, 100),
        Buffer.alloc(300),
        CONTENT.subarray(400, 1000),
      ])
      return (
        first?.status === 'fulfilled' &&
        first.value.equals(wanted) &&
        second?.status === 'rejected' &&
        (second.reason as Error).message.includes('broken')
      )
    }),
  )
  add(
    'NBD: a damaged server is named',
    200,
    fc.asyncProperty(
      damaged(HANDSHAKE),
      damaged(REPLIES),
      fc.nat(2),
      cuts,
      async (a, b, which, at) =>
        (await readFrom(which < 2 ? HANDSHAKE : a, which > 1 ? REPLIES : b, at)).every(named),
    ),
  )
  add(
    'gate: a shape takes what it took before as the same, and never throws',
    200,
    fc.property(fc.constantFrom(...SAID).chain(distorted), message =>
      SHAPES.every(schema => {
        const { data, success } = schema.safeParse(message)
        if (!isUnpolluted()) return false
        return !success || isDeepStrictEqual(schema.parse(data), data)
      }),
    ),
  )
  add(
    'gate: whatever is said, it is heard as messages or hung up on',
    300,
    fc.asyncProperty(
      fc.oneof(
        damaged(LINES),
        fc.uint8Array({ minLength: 1, maxLength: 300 }).map(one => Buffer.from(one)),
      ),
      cuts,
      (bytes, where) => hear(bytes.length === 0 ? Buffer.from('\n') : bytes, where),
    ),
  )
  add(
    'generation.json: sound as written, or broken with a reason',
    300,
    fc.asyncProperty(texts(GENERATION), async text => {
      writeFileSync(path.join(folder, 'generation.json'), text)
      const found = await readGeneration(folder)
      if (found.broken !== undefined) return found.broken.includes('generation.json')
      return isDeepStrictEqual(generationSchema.parse(found.generation), found.generation)
    }),
  )
  add(
    'manifest: every line is a digest or nothing, and an untouched one is itself',
    200,
    fc.property(damaged(MANIFEST), bytes => {
      const file = path.join(dir, 'vda.manifest')
      writeFileSync(file, bytes)
      const fd = openSync(file, 'r')
      try {
        return readDigests(fd, 0, 8).every((line, at) => {
          const same = bytes
            .subarray(at * 65, (at + 1) * 65)
            .equals(MANIFEST.subarray(at * 65, (at + 1) * 65))
          return same ? line === sha256(String(at)) : line === '' || /^[0-9a-f]{64}$/.test(line)
        })
      } finally {
        closeSync(fd)
      }
    }),
  )
  const stored = (name: string, value: object, file: string, read: () => Promise<unknown>): void =>
    add(
      `${name}: read as written, or refused for safety`,
      200,
      fc.asyncProperty(texts(value), async text => {
        writeFileSync(file, text)
        const found = await read().catch((error: unknown) => isNamed(error, 'UNSAFE') && undefined)
        rmSync(file)
        return isUnpolluted() && (found === undefined || typeof found === 'object')
      }),
    )
  stored('state.json', STATE, layout.state, () => readState(layout))
  stored('undo.json', UNDO, layout.undo, () => readJournal(layout))
  add(
    'history: a line that was changed is found, unless it is the last',
    30,
    fc.asyncProperty(
      fc.nat(3),
      fc.nat(10_000),
      fc.integer({ min: 1, max: 255 }),
      async (line, at, by) => {
        rmSync(layout.history, { force: true })
        for (let seq = 1; seq <= 5; seq++) await appendHistory(layout, historyLine(seq))
        const whole = await checkHistory(layout, 5)
        const lines = readFileSync(layout.history, 'latin1').split('\n')
        const bytes = Buffer.from(lines[line] ?? '', 'latin1')
        const place = at % bytes.length
        bytes[place] = (bytes[place] ?? 0) ^ by
        lines[line] = bytes.toString('latin1')
        writeFileSync(layout.history, Buffer.from(lines.join('\n'), 'latin1'))
        const found = await checkHistory(layout, 5)
        return whole.problems.length === 0 && found.problems.length + found.torn.length > 0
      },
    ),
  )
  add(
    'history: any bytes are judged',
    150,
    fc.asyncProperty(fc.uint8Array({ maxLength: 300 }), async noise => {
      writeFileSync(layout.history, noise)
      const { lines } = await checkHistory(layout)
      return lines >= 0
    }),
  )

  const examples = ['standby.yaml', 'source.yaml'].map(name =>
    readFileSync(path.join(ROOT, 'examples', name)),
  )
  const yaml = fc.oneof(
    ...examples.map(damaged).map(one => one.map(bytes => bytes.toString())),
    fc.string(),
    fc.jsonValue({ maxDepth: 4 }).map(one => JSON.stringify(one)),
    fc.constantFrom(...YAML),
  )
  const parse = (text: string): unknown => {
    const config = parseConfig('standby.yaml', text, standbySchema)
    return configShow(config, undefined)
  }
  const parseSource = (text: string): unknown => {
    const config = parseConfig('source.yaml', text, sourceSchema)
    return Object.keys(config.domains).map(one => showDomain(config, one))
  }
  add(
    'both configurations: any YAML is taken, or refused as wrong usage',
    250,
    fc.property(
      yaml,
      text =>
        isOrderly(() => parse(text), 'USAGE') &&
        isOrderly(() => parseSource(text), 'USAGE') &&
        isUnpolluted(),
    ),
  )

  const xml = fc.oneof(
    damaged(Buffer.from(DOMAIN_XML)).map(bytes => bytes.toString()),
    damaged(Buffer.from(DOMAIN_XML)).map(bytes => bytes.toString('latin1')),
    fc.string(),
  )
  const described = { domain: 'web', uuid: UUID }
  add(
    'domain XML: read, or refused, by the source and by the standby',
    400,
    fc.property(
      xml,
      text =>
        isOrderly(() => readDomainXml(text), 'SOURCE_REFUSED') &&
        isOrderly(
          () =>
            checkDefinitions(
              { inactiveXml: text, liveXml: DOMAIN_XML, networks: [], pools: [] },
              described,
              'folder',
              'INTEGRITY',
            ),
          'INTEGRITY',
        ),
    ),
  )
  add(
    'names: one word of a path, no option, and an export name comes apart as it was put together',
    500,
    fc.property(fc.oneof(fc.string(), fc.stringMatching(/^[A-Za-z0-9_.+:@/-]{1,12}$/)), text => {
      if (!isName(text)) return true
      const below = path.join('/store', text)
      return (
        path.dirname(below) === '/store' &&
        below.length > '/store/'.length &&
        !/^[-.]|[\s/\\\0'"$`;&|<>()]/.test(text) &&
        exportName(text, 'vda').split('/').length === 2
      )
    }),
  )
  add(
    'recovery points: an id for each instant, in their order, and nothing else is one',
    300,
    fc.property(
      fc.date({ min: new Date('1970-01-01'), max: new Date('9999-12-31'), noInvalidDate: true }),
      fc.string(),
      (instant, text) => {
        const id = newRecoveryPointId(instant)
        const later = newRecoveryPointId(
          new Date(Math.min(instant.getTime() + 1000, 253402214400000)),
        )
        return (
          isRecoveryPointId(id) &&
          id.slice(0, 16) <= later.slice(0, 16) &&
          (!isRecoveryPointId(text) || path.basename(text) === text)
        )
      },
    ),
  )
  add(
    'limits: what is taken is told so that it is taken again, as the same',
    300,
    fc.property(
      fc.oneof(
        fc.string(),
        fc.stringMatching(/^([012]?\d:[0-5]\d (off|\d{1,5}(Ki|Mi|Gi)B\/s)(, |$)){1,3}/),
      ),
      text => {
        let taken
        try {
          taken = parseTimetable(text)
        } catch (error) {
          return error instanceof Error && error.message !== ''
        }
        return (
          parseTimetable(formatTimetable(taken)).length === taken.length &&
          (parseSize(text) ?? 0) >= 0
        )
      },
    ),
  )
  return all
}

const historyLine = (seq: number): Parameters<typeof appendHistory>[1] =>
  ({
    at: '2026-11-20T03:00:07Z',
    outcome: 'merged',
    seq,
    recoveryPoint: `20261120T03000${seq}Z-4f2a`,
    bytes: { read: 1, written: 1 },
    seconds: {},
  }) as unknown as Parameters<typeof appendHistory>[1]

/** YAML that is more than data. */
const YAML: readonly string[] = [
  'a: &a [1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c,*c,*c,*c,*c]\n',
  'a: *nothing\n',
  'a: &a { b: *a }\n',
  '&a [*a]\n',
  '__proto__: { xyzzy: 1 }\n',
  'domains: { __proto__: { source: a } }\nsources: { a: { transport: unix } }\n',
  'domains: { constructor: { source: a } }\nsources: { a: { transport: unix } }\n',
  'domains: { web: { disks: { __proto__: { exclude: true } }, source: a } }\nsources: { a: { transport: unix } }\n',
  'groups: { __proto__: { rpo: 4h } }\n',
  '<<: { store: /x }\n',
  '? [a, b]\n: c\n',
  '? { a: b }\n: c\n',
  '!!binary aGVsbG8=\n',
  'store: !!set { a, b }\n',
  'store: !!js/function "x"\n',
  'store: !<tag:yaml.org,2002:timestamp> 2001-01-01\n',
  '---\na: 1\n---\nb: 2\n',
  '%YAML 9.9\n---\nstore: /x\n',
  '- - - - - - - - a\n',
  `${'['.repeat(2000)}\n`,
  `${'- '.repeat(5000)}a\n`,
  `${'{a: '.repeat(1500)}1${'}'.repeat(1500)}\n`,
  'store: "\\0"\n',
  'store: /x\nstore: /y\n',
  '\t\tstore: /x\n',
  'null\n',
  '~: 1\n',
  '17\n',
]
