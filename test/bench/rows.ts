// The rows: what is run, on what, and where its result can be compared with the image.

import { rm } from 'node:fs/promises'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { measure, type Measured } from './measure.ts'
import type { Served } from './world.ts'

/** One run of a row; `phases` are seconds by our pull's own clock. */
export interface Run extends Measured {
  readonly phases?: Readonly<Record<string, number>>
  /** By NBD. */
  readonly bytesRead?: number
}

export interface Row {
  readonly name: string
  readonly title: string
  /** What was typed, for the reader. */
  readonly command: string
  run(signal: AbortSignal): Promise<Run>
  /** A raw copy of the image when the run is over; undefined when the result has another format. */
  readonly copy: string | undefined
  /** Removes the result. */
  clear(): Promise<void>
}

const CLONE = fileURLToPath(new URL('../../client/cli.js', import.meta.url))

/** The product's own command, from a fresh clone to a published generation. */
export function ourPull(
  name: string,
  title: string,
  folder: string,
  served: Pick<Served, 'config' | 'store'>,
  more: readonly string[] = [],
): Row {
  const { config, store } = served
  return {
    name,
    title,
    command: ['clone pull mydomain', ...more].join(' '),
    copy: path.join(store, 'mydomain', 'current', 'vda.raw'),
    async run(signal) {
      const argv = [
        process.execPath,
        CLONE,
        'pull',
        'mydomain',
        '--config',
        config,
        '--json',
        ...more,
      ]
      const measured = await measure(argv, folder, signal)
      const { results } = JSON.parse(measured.stdout) as {
        results: { seconds: Record<string, number>; bytes: { read: number } }[]
      }
      return {
        ...measured,
        phases: results[0]?.seconds ?? {},
        bytesRead: results[0]?.bytes.read ?? 0,
      }
    },
    clear: () => rm(store, { recursive: true, force: true }),
  }
}

/** The other programs, each copying the same export to a file in the same folder. */
export function otherPrograms(folder: string, { uri, image }: Served): Row[] {
  const copy = path.join(folder, 'copy.raw')
  const other = (name: string, title: string, command: string): Row => ({
    name,
    title,
    command,
    copy,
    run: signal => measure(['sh', '-ec', command, 'sh', uri, copy, image], folder, signal),
    clear: () => rm(copy, { force: true }),
  })
  const nbdcopy = 'nbdcopy --connections=1 "$1" "$2"'
  return [
    other('nbdcopy', 'nbdcopy, no checksum, not synced', nbdcopy),
    other('nbdcopy-flush', 'nbdcopy, no checksum, synced at the end', `${nbdcopy} --flush`),
    other('nbdcopy-sha256sum', 'nbdcopy, then sha256sum', `${nbdcopy}; sha256sum "$2"`),
    other(
      'nbdcopy-both-sums',
      'nbdcopy, then sha256sum of both sides at once',
      `${nbdcopy}; sha256sum "$3" & sha256sum "$2"; wait`,
    ),
    other('nbdcopy-openssl', 'nbdcopy, then openssl', `${nbdcopy}; openssl dgst -sha256 "$2"`),
    other(
      'qemu-img',
      'qemu-img convert, no checksum, not synced',
      'qemu-img convert -f raw -O raw "$1" "$2"',
    ),
  ]
}
