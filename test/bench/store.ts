// The row `store`: how long commands take that only look at a big store. The store is complete: every image matches its
// manifest, and the history is a chain.

import { createHash } from 'node:crypto'
import { mkdirSync, openSync, closeSync, ftruncateSync, writeFileSync, writeSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Generation } from '../../client/store/generation.ts'
import { layoutOf, type Layout } from '../../client/store/layout.ts'
import { generationOf, idOf } from '../client/fake-clone.ts'
import { measure } from './measure.ts'
import type { Result } from './report.ts'
import type { Run } from './rows.ts'

const MIB = 1024 * 1024
const GENERATIONS = 200
const TARGETS = Array.from({ length: 10 }, (_, at) => `vd${String.fromCharCode(97 + at)}`)
const DISK = 64 * MIB
const CLONE = fileURLToPath(new URL('../../client/cli.js', import.meta.url))

/** The commands, each as a fresh process on the same store, taking turns. @returns one result per command */
export async function storeRows(
  folder: string,
  rounds: number,
  signal: AbortSignal,
): Promise<Result[]> {
  const config = path.join(folder, 'store.yaml')
  const store = path.join(folder, 'clones')
  makeStore(layoutOf(path.join(store, 'mydomain')))
  writeFileSync(
    config,
    `store: ${store}\nsources: { a: { transport: unix } }\n` +
      `domains: { mydomain: { source: a, keep: { last: ${GENERATIONS} } } }\n`,
  )
  const commands = [
    ['status'],
    ['list', 'mydomain'],
    ['verify', 'mydomain', '--manifests-only'],
    ['--version'],
  ]
  const runs = commands.map((): Run[] => [])
  for (let round = 0; round < rounds; round++)
    for (const [at, words] of commands.entries()) {
      const argv = [process.execPath, CLONE, ...words, '--config', config]
      runs[at]?.push(await measure(argv, folder, signal))
    }
  return commands.map((words, at) => ({
    name: words[0] === '--version' ? 'start-up' : (words[0] ?? ''),
    title: `clone ${words.join(' ')}`,
    runs: runs[at] ?? [],
    otherImage: true,
  }))
}

/** Written without fsync, as nothing of it has to outlive a power cut. */
function makeStore(layout: Layout): void {
  mkdirSync(layout.staging, { recursive: true })
  let previous: string | null = null
  const history: string[] = []
  for (let seq = 1; seq <= GENERATIONS; seq++) {
    const dir = path.join(layout.generations, idOf(seq))
    mkdirSync(dir, { recursive: true })
    const disks = TARGETS.map(target => makeDisk(dir, target, seq))
    writeFileSync(
      path.join(dir, 'generation.json'),
      JSON.stringify({ ...generationOf(seq), disks }, undefined, 2),
    )
    writeFileSync(path.join(dir, 'domain.xml'), '<domain/>\n')
    const line: string = JSON.stringify({ previous, ...historyLine(seq) })
    previous = sha256(Buffer.from(line))
    history.push(`${line}\n`)
  }
  writeFileSync(layout.history, history.join(''))
  const bound = {
    hostId: generationOf(1).source.hostId,
    domainUuid: generationOf(1).source.domainUuid,
  }
  const counts = { epoch: 0, lastSeq: GENERATIONS, attempts: GENERATIONS, failures: 0 }
  const state = {
    schema: 1,
    role: 'standby',
    selected: 'newest',
    lastAttempt: null,
    bound,
    ...counts,
  }
  writeFileSync(layout.state, JSON.stringify(state))
}

const sha256 = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex')
const ZERO_CHUNK = sha256(Buffer.alloc(MIB))

/** One block of data, then a hole. */
function makeDisk(dir: string, target: string, seq: number): Generation['disks'][number] {
  const data = Buffer.alloc(4096, `${target} ${seq}\n`)
  const fd = openSync(path.join(dir, `${target}.raw`), 'w')
  writeSync(fd, data)
  ftruncateSync(fd, DISK)
  closeSync(fd)
  const first = sha256(Buffer.concat([data, Buffer.alloc(MIB - data.length)]))
  const lines = [first, ...Array<string>(DISK / MIB - 1).fill(ZERO_CHUNK)]
  const manifest = Buffer.from(lines.map(line => `${line}\n`).join(''))
  writeFileSync(path.join(dir, `${target}.manifest`), manifest)
  return { target, format: 'raw', size: DISK, digest: sha256(manifest), layers: [] }
}

function historyLine(seq: number): object {
  const { instant } = generationOf(seq).recoveryPoint
  return {
    ...{
      schema: 1,
      began: instant,
      ended: instant,
      outcome: 'merged',
      seq,
      recoveryPoint: idOf(seq),
    },
    bytes: { read: TARGETS.length * DISK, written: MIB },
    seconds: { freeze: 0.2, copy: 3, verify: 1, publish: 0.1, merge: 0.4 },
    plan: TARGETS.map(target => ({ target, kind: 'full', reason: 'compared', size: DISK })),
  }
}
