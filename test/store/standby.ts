// A standby with one clone in a folder of its own, worked by the real `clone` program as built in dist/.

import { execa } from 'execa'
import { readFile, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { ROOT } from '../lab/names.ts'
import type { ChangingSource } from './changing-source.ts'
import { inProcess, type Handling } from './in-process.ts'

const CLI = path.join(ROOT, 'dist', 'client', 'cli.js')
export const DOMAIN = 'mydomain'

export interface Ran {
  /** 128 and the signal's number when one ended it. */
  readonly code: number
  readonly stdout: string
  readonly stderr: string
}

export interface Standby {
  readonly source: ChangingSource
  readonly configFile: string
  /** The clone's folder. */
  readonly dir: string
  /** `clone COMMAND mydomain …`, by the built program. */
  clone(command: string, ...more: readonly string[]): Promise<Ran>
  /** The same in the background, to be signalled. */
  start(command: string, ...more: readonly string[]): Running
  /** The same in this process where that can be, which is quicker. */
  quick(handling: Handling, command: string, ...more: readonly string[]): Promise<Ran>
  /** Other settings of the domain from now on, YAML lines. */
  configure(...settings: readonly string[]): Promise<void>
}

export interface Running {
  kill(signal: NodeJS.Signals): void
  readonly ended: Promise<Ran>
}

/** @param store folder of the clones @param settings of the domain, e.g. `generations: in-place` */
export async function aStandby(
  source: ChangingSource,
  store: string,
  ...settings: readonly string[]
): Promise<Standby> {
  const usual = await readFile(source.fake.configFile, 'utf8')
  const configFile = path.join(source.fake.dir, `standby-${store.replaceAll(/\W+/g, '-')}.yaml`)
  const configure = async (...lines: readonly string[]): Promise<void> => {
    const domain = ['source: alpha', ...lines].map(line => `    ${line}\n`).join('')
    const text = usual
      .replace(/^store: .*$/m, `store: ${store}`)
      .replace(/^domains: .*\n/m, `domains:\n  ${DOMAIN}:\n${domain}`)
    await writeFile(configFile, text)
  }
  await configure(...settings)
  const start: Standby['start'] = (command, ...more) => {
    const child = execa(process.execPath, [CLI, command, DOMAIN, ...more, '--config', configFile], {
      stdin: 'ignore',
      reject: false,
      // What the tests' own TypeScript needs is nothing for the built program.
      env: { NODE_OPTIONS: '' },
      timeout: 120_000,
    })
    return {
      kill: signal => void child.kill(signal),
      ended: child.then(({ exitCode, signal, stdout, stderr }) => ({
        code: exitCode ?? (signal === 'SIGKILL' ? 137 : 128),
        stdout,
        stderr,
      })),
    }
  }
  return {
    source,
    configFile,
    dir: path.join(store, DOMAIN),
    configure,
    start,
    clone: (command, ...more) => start(command, ...more).ended,
    async quick(handling, command, ...more) {
      const argv = [command, DOMAIN, ...more, '--config', configFile]
      return (await inProcess(argv, handling)) ?? (await start(command, ...more).ended)
    },
  }
}
