// What a standby should know of the source's host, and the networks and pools that a domain names.

import type { SessionInfo } from '../../shared/gate.ts'
import type { DomainXml } from './domain-xml.ts'
import type { Virsh } from './virsh.ts'

type HostFacts = Pick<SessionInfo, 'networks' | 'pools' | 'host'>

/** Facts are helpful, not vital: what libvirt does not tell is left out. */
export async function readHostFacts(virsh: Virsh, domain: DomainXml): Promise<HostFacts> {
  const describe = async (
    command: string,
    name: string,
  ): Promise<{ name: string; xml: string }[]> => {
    const result = await virsh.run([command, name])
    return result.exitCode === 0 ? [{ name, xml: result.stdout }] : []
  }
  const [version, networks, pools] = await Promise.all([
    virsh.run(['version']),
    Promise.all(domain.networks.map(name => describe('net-dumpxml', name))),
    Promise.all(domain.pools.map(name => describe('pool-dumpxml', name))),
  ])
  const field = (pattern: RegExp): string => pattern.exec(version.stdout)?.[1] ?? 'unknown'
  return {
    networks: networks.flat(),
    pools: pools.flat(),
    host: {
      libvirt: field(/^Using library: libvirt (\S+)/m),
      qemu: field(/^Running hypervisor: QEMU (\S+)/m),
      arch: domain.arch,
      machine: domain.machine,
      cpu: domain.cpu,
    },
  }
}
