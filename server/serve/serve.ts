// clone-server serve: the one owner of sessions, journals, virsh and every nbd-server on this source.

import { randomUUID } from 'node:crypto'
import { mkdir, readFile, rm } from 'node:fs/promises'
import { setTimeout as delay } from 'node:timers/promises'
import { Cleanup } from '../../shared/cleanup.ts'
import { Failure, toFailure } from '../../shared/failures.ts'
import { writeDurably } from '../../shared/host/durable.ts'
import { tryLock } from '../../shared/host/lock.ts'
import type { Paths } from '../config/paths.ts'
import { forgetUntracked } from '../tracking/tracking.ts'
import type { Source } from '../source.ts'
import { listenTls } from '../tls/listener.ts'
import { attachRoles } from './attach.ts'
import { createConnections } from './connections.ts'
import { createDomains, type Domains } from './domains.ts'
import { listen } from './listen.ts'
import { listenForGates } from './gate-socket.ts'
import { createNotify } from './notify.ts'
import { createRelays } from './relays.ts'
import { controlServer, GATE_ROLES, ROLES } from './socket.ts'
import { readActivities, summarise } from './summary.ts'
import { createVisits } from './visits.ts'

const TICK_MS = 1000
const RECOVER_EVERY_MS = 5000

/**
 * Serves until the signal aborts; then ends every session, waits for its merge, and returns.
 * @param ready called once clients can connect
 */
export async function serve(source: Source, signal: AbortSignal, ready: () => void): Promise<void> {
  const { paths, log, config } = source
  await using cleanup = new Cleanup()

  // Nothing that serve makes is for others, from its first moment on.
  process.umask(0o077)
  await makeDirectories(paths)
  const lock = tryLock(paths.serveLock, `pid ${process.pid}`)
  if (typeof lock !== 'function')
    throw new Failure('LOCKED', `clone-server serve runs already (${lock.heldBy})`)
  cleanup.defer(lock)
  await rm(paths.connections, { recursive: true, force: true })
  await rm(paths.exports, { recursive: true, force: true })
  await makeDirectories(paths)
  const hostId = await readHostId(paths.hostId)

  const domains = createDomains(source)
  const notify = createNotify(process.env, log, async () =>
    summarise(await readActivities(source, domains)),
  )
  cleanup.defer(() => notify.close())
  const connections = createConnections(source, domains)
  cleanup.defer(() => connections.closeAll())

  const relays = createRelays(log, domains, connections)
  const visits = createVisits()
  const serving = { source, domains, connections, relays, visits, hostId }

  // Hooks and operators can talk to us before NBD clients can, so that recovery can be watched.
  const control = controlServer(log, ROLES, attachRoles(serving, true))
  await listen(control, paths.serveSocket, cleanup)
  if (config.listen.gate)
    await listenForGates(
      controlServer(log, GATE_ROLES, attachRoles(serving, false)),
      paths.gateSocket,
      config.listen.gate.group,
      cleanup,
    )
  // A domain that cannot be recovered must not keep the others from being served: each begin recovers its own first.
  void domains.recoverAll(false)
  void forgetUntracked(source)
  cleanup.defer(() => stopAll(domains))
  cleanup.defer(() => notify.stopping())

  await listen(connections.listener(), paths.nbdSocket, cleanup)
  if (config.listen.tcp) await listen(connections.listener(), config.listen.tcp, cleanup)
  if (config.listen.tls && paths.tls) {
    const tls = await listenTls(paths.serveSocket, paths.tls, log)
    cleanup.defer(() => tls.closeAll())
    await listen(tls.server, config.listen.tls, cleanup)
  }
  log.info(
    {
      nbd: paths.nbdSocket,
      tcp: config.listen.tcp,
      tls: config.listen.tls,
      domains: domains.all().map(one => one.domain),
    },
    'serving',
  )
  ready()
  notify.ready()

  let recovered = Date.now()
  while (!signal.aborted) {
    for (const one of domains.all()) one.tick()
    connections.tick()
    notify.alive()
    if (Date.now() - recovered > RECOVER_EVERY_MS) {
      recovered = Date.now()
      void domains.recoverAll(false)
    }
    await delay(TICK_MS, undefined, { signal }).catch(() => undefined)
  }
  log.info('stopping: ending sessions and merging')
}

/** Ends every session and waits for all merges. @throws Failure of the first that failed */
async function stopAll(domains: Domains): Promise<void> {
  const stopping = new Failure('SOURCE_REFUSED', 'clone-server serve on the source is stopping')
  const stopped = await Promise.allSettled(domains.all().map(one => one.stop(stopping)))
  await domains.recoverAll(true)
  for (const one of stopped) if (one.status === 'rejected') throw toFailure(one.reason)
}

async function makeDirectories(paths: Paths): Promise<void> {
  for (const directory of [paths.connections, paths.exports, paths.journals])
    await mkdir(directory, { recursive: true, mode: 0o700 }).catch((error: unknown) => {
      throw new Failure('USAGE', `cannot make ${directory}: ${toFailure(error).message}`, {
        cause: error,
      })
    })
}

/** This source's identity, made once; clones are bound to it. */
async function readHostId(file: string): Promise<string> {
  const known = await readFile(file, 'utf8').catch((error: unknown) => {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ENOENT') return ''
    throw new Failure('USAGE', `cannot read ${file}: ${code ?? String(error)}`, {
      cause: error,
    })
  })
  if (known.trim() !== '') return known.trim()
  const made = randomUUID()
  await writeDurably(file, `${made}\n`)
  return made
}
