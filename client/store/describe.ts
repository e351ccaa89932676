// What generation.json will say: of the disks, the source, the recovery point, and how all of it was verified.

import path from 'node:path'
import type { SessionInfo } from '../../shared/gate.ts'
import { CHUNK_SIZE, type DiskPlan } from '../plan.ts'
import type { Greeting, Wanted } from '../source/session.ts'
import type { Generation } from './generation.ts'
import { manifestName } from './layout.ts'
import { manifestDigest } from './manifest.ts'

/** The disks of a staged generation, with the digests of their manifests. @throws Failure INTEGRITY */
export async function digestsOf(
  dir: string,
  plan: readonly DiskPlan[],
): Promise<Generation['disks']> {
  const disks: Generation['disks'] = []
  for (const { target, format, size, chunks } of plan) {
    const digest = await manifestDigest(path.join(dir, manifestName({ target })), chunks)
    disks.push({ target, format, size, digest, layers: [] })
  }
  return disks
}

/** How a pull verifies what it publishes. */
export function levelOf(
  plan: readonly DiskPlan[],
  verify: 'readback' | 'source',
): Generation['verified']['level'] {
  if (verify === 'source') return 'source'
  return plan.every(({ basis }) => basis === undefined) ? 'all' : 'changed'
}

/** @param level how it was verified, just now */
export function describeGeneration(
  {
    info,
    greeting,
    omitted,
  }: { info: SessionInfo; greeting: Greeting; omitted: Wanted['omitted'] },
  { seq, domain }: { seq: number; domain: string },
  disks: Generation['disks'],
  level: Generation['verified']['level'],
): Generation {
  const { hostId, epoch, clockSkewMs } = greeting
  return {
    ...{ schema: 1, seq, domain, disks, omitted: [...omitted] },
    source: { hostId, domainUuid: info.uuid, epoch },
    recoveryPoint: { ...info.recoveryPoint, clockSkewMs },
    chunkSize: CHUNK_SIZE,
    definition: { inactive: 'domain.xml', live: info.liveXml === '' ? null : 'live.xml' },
    nvram: info.nvram === null ? null : 'nvram.fd',
    networks: info.networks,
    pools: info.pools,
    host: info.host,
    verified: { level, at: new Date().toISOString() },
  }
}
