// Our own programs as a user gets them: packed, installed, `clone` and `clone-server` on the hosts' PATH.

import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { execa } from 'execa'
import { Cleanup } from '../../shared/cleanup.ts'
import { Failure } from '../../shared/failures.ts'
import { childEnvironment } from './environment.ts'
import { CACHE, CACHE_LOCK, ROOT } from './names.ts'
import { waitFor } from './processes.ts'
import { takeLock } from './protocol.ts'

const PREFIX = join(CACHE, 'prefix')
const INSTALLED = join(CACHE, 'installed.sha256')

/** Packs what is built in the checkout and installs it, unless exactly that is installed. @returns a warning */
export async function installPrograms(): Promise<string | undefined> {
  const missing = ['client', 'server'].filter(
    side => !existsSync(join(ROOT, 'dist', side, 'cli.js')),
  )
  if (missing.length > 0) {
    const files = missing.map(side => `dist/${side}/cli.js`).join(' and ')
    return `${files} not built: the hosts have no clone and clone-server of this checkout`
  }
  await using cleanup = new Cleanup()
  const lock = await waitFor('another lab to install', 60, () => takeLock(CACHE_LOCK))
  cleanup.defer(() => void lock.close())
  const directory = await mkdtemp(join(tmpdir(), 'nbd-clone-pack-'))
  cleanup.defer(() => rm(directory, { recursive: true, force: true }))

  // Scripts are left out because lab.sh has just built; npm sets the modes of the programs itself.
  await npm('pack', '--silent', '--ignore-scripts', '--pack-destination', directory)
  const tarball = (await readdir(directory)).find(name => name.endsWith('.tgz'))
  if (tarball === undefined) throw new Failure('INTERNAL', 'npm pack made no tarball')
  const file = join(directory, tarball)
  const digest = createHash('sha256')
    .update(await readFile(file))
    .digest('hex')
  const installed = await readFile(INSTALLED, 'utf8').catch(() => '')
  if (installed === digest) return undefined

  await rm(CACHE, { recursive: true, force: true })
  await mkdir(PREFIX, { recursive: true })
  const quiet = ['--silent', '--no-audit', '--no-fund', '--prefer-offline']
  await npm('install', '--global', '--prefix', PREFIX, ...quiet, file)
  await writeFile(INSTALLED, digest)
  return undefined
}

async function npm(...args: string[]): Promise<void> {
  await execa('npm', args, {
    cwd: ROOT,
    env: childEnvironment(),
    extendEnv: false,
    stdin: 'ignore',
  })
}
