// The product's version, read from the package that is running.

import { readFileSync } from 'node:fs'

function readVersion(): string {
  for (const up of ['../package.json', '../../package.json']) {
    try {
      const text = readFileSync(new URL(up, import.meta.url), 'utf8')
      return (JSON.parse(text) as { version: string }).version
    } catch {
      continue
    }
  }
  throw new Error('package.json of nbd-clone not found beside the program')
}

export const VERSION = readVersion()
