// Starts of domains, as libvirt's hook tells them: whoever relies on a domain being off hears of its start before it goes on.

import { stat } from 'node:fs/promises'
import { Failure } from '../../shared/failures.ts'

/** A start that is about to happen. */
export interface Start {
  readonly domain: string
  /** Paths of its images. */
  readonly images: readonly string[]
}

/** Someone who relies on a domain being off. */
export interface Watch {
  /** Names the images it relies on: a start of any domain with one of them breaks it too. */
  covers(images: readonly string[]): Promise<void>
  /** Why the domain can be relied on no longer. */
  broken(): Failure | undefined
  /** Breaks it, once. Returns when what was given to `onBreak` is done. */
  break(reason: Failure): Promise<void>
  /** What to do when it breaks. */
  onBreak(act: (reason: Failure) => Promise<void>): void
  /** Listens no longer. */
  close(): void
}

export interface Starts {
  /** Listens from now on. */
  watch(domain: string): Watch
  /** A domain starts. Returns when nobody reads its images any more; how many watches that broke. */
  heard(start: Start): Promise<number>
}

export function createStarts(): Starts {
  const watches = new Map<Watch, { domain: string; images: ReadonlySet<string> }>()
  return {
    watch(domain) {
      let reason: Failure | undefined
      let act: (reason: Failure) => Promise<void> = () => Promise.resolve()
      const watch: Watch = {
        async covers(images) {
          const identities = new Set(await Promise.all(images.map(identity)))
          if (watches.has(watch)) watches.set(watch, { domain, images: identities })
        },
        broken: () => reason,
        async break(why) {
          reason ??= why
          await act(reason)
        },
        onBreak: wanted => {
          act = wanted
        },
        close: () => watches.delete(watch),
      }
      watches.set(watch, { domain, images: new Set() })
      return watch
    },
    async heard(start) {
      const images = await Promise.all(start.images.map(identity))
      const concerned = [...watches].filter(
        ([, one]) => one.domain === start.domain || images.some(image => one.images.has(image)),
      )
      await Promise.all(concerned.map(([watch, { domain }]) => watch.break(started(start, domain))))
      return concerned.length
    },
  }
}

function started(start: Start, domain: string): Failure {
  const who =
    start.domain === domain
      ? `domain ${domain} was started`
      : `domain ${start.domain} was started on images of ${domain}`
  return new Failure('SOURCE_REFUSED', `${who}, so its disks no longer stand still`, {
    remedy: 'nothing was published; pull again: a running domain is pulled by a snapshot',
  })
}

/** What tells one file or device from all others, under whatever name. */
async function identity(file: string): Promise<string> {
  const found = await stat(file).catch(() => undefined)
  if (!found) return file
  return found.isBlockDevice() ? `device ${found.rdev}` : `inode ${found.dev}:${found.ino}`
}
