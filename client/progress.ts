// The progress bar of a pull or verify, for a terminal; without one there is none.

import { SingleBar } from 'cli-progress'
import { formatDuration, formatSize } from '../shared/quantities.ts'
import { NOBODY, type Watcher } from './attempt.ts'

/** @param stream where to draw. @param label the clone's name */
export function progressBar(stream: NodeJS.WriteStream, label: string): Watcher {
  if (!stream.isTTY) return NOBODY
  let bar: SingleBar | undefined
  let done = 0
  let began = 0
  const stop = (): void => {
    bar?.stop()
    bar = undefined
  }
  return {
    phase(name, totalBytes) {
      stop()
      done = 0
      began = performance.now()
      bar = new SingleBar({
        stream,
        hideCursor: false,
        clearOnComplete: true,
        linewrap: false,
        format: (_options, params) => {
          const seconds = Math.max(0.001, (performance.now() - began) / 1000)
          const rate = params.value / seconds
          const left = rate > 0 ? ((params.total - params.value) / rate) * 1000 : 0
          const width = Math.round(params.progress * 30)
          return [
            `${label} ${name.padEnd(6)} [${'='.repeat(width)}${' '.repeat(30 - width)}]`,
            `${formatSize(params.value)} of ${formatSize(params.total)}`,
            `${formatSize(Math.round(rate))}/s`,
            `ETA ${formatDuration(left)}`,
          ].join('  ')
        },
      })
      bar.start(totalBytes, 0)
    },
    progress(bytes) {
      done += bytes
      bar?.update(done)
    },
    done: stop,
    note(text) {
      stop()
      stream.write(`${text}\n`)
    },
  }
}
