// What `clone verify` says, on a terminal and as JSON.

import { failureJson } from '../shared/help.ts'
import { formatSize } from '../shared/quantities.ts'
import type { Verified } from './commands/verify.ts'
import { offsetOf } from './copy/runs.ts'
import type { VerifiedDisk } from './verify.ts'

/** Bad chunks that are named one by one on a terminal; --json names them all. */
const NAMED = 20

export function verifyJson({ repaired, ...verified }: Verified): object {
  if (!repaired) return verified
  const { failure, ...facts } = repaired
  return {
    ...verified,
    repaired: { ...facts, ...(failure && { failure: failureJson(failure) }) },
  }
}

export function verifyText(verified: Verified): string {
  const { clone, id, disks, broken, alsoDamaged = [] } = verified
  return [
    ...(broken === undefined ? [] : [broken]),
    ...disks.flatMap(disk => diskLines(id, disk)),
    ...alsoDamaged.map(other => `${id}: generation ${other} has bytes in the same bad chunks`),
    ...repairLines(verified),
  ]
    .map(line => `${clone}: ${line}`)
    .join('\n')
}

function diskLines(id: string, disk: VerifiedDisk): string[] {
  const { target, size, bad, manifest, image, cached = [] } = disk
  const good = bad.length === 0 && manifest === undefined && image === undefined
  return [
    ...[manifest, image].filter(problem => problem !== undefined),
    ...bad.slice(0, NAMED).map(one => `${one.file}: ${offsetOf(one)}: ${one.why}`),
    ...andMore(bad.length, 'bad chunks'),
    ...(good ? [`${id}: ${target}: ${formatSize(size)} match the manifest`] : []),
    ...cached.map(file => `${file}: read from the page cache, which proves nothing of its medium`),
  ]
}

function repairLines({ id, repaired, sound }: Verified): string[] {
  if (!repaired) return []
  const { files, local, fetched, lost, healed } = repaired
  return [
    ...files.map(file => `${file}: written anew`),
    `${id}: ${local} chunks repaired from this clone, ${fetched} from the source; ` +
      (sound ? 'all of it was read again and is good' : 'it is still damaged'),
    ...lost.slice(0, NAMED).map(one => `${one.file}: ${offsetOf(one)}: ${one.reason}`),
    ...andMore(lost.length, 'chunks that could not be had'),
    ...healed.map(other => `${id}: generation ${other} is good again, too`),
  ]
}

const andMore = (count: number, what: string): string[] =>
  count > NAMED ? [`and ${count - NAMED} more ${what}`] : []
