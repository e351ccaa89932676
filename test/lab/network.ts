// The wire between the hosts: two network namespaces joined by a veth pair that never shows on the machine.

import { execa } from 'execa'
import { ADDRESS, HOSTS, namespaceOf, type HostName } from './names.ts'
import { waitFor } from './processes.ts'

const LINK = 'nbd-clone-lab0'

async function ip(...args: string[]): Promise<void> {
  await execa('ip', args)
}

/** Makes both namespaces and the link, which is up when this returns. */
export async function layNetwork(): Promise<void> {
  for (const host of HOSTS) await ip('netns', 'add', namespaceOf(host))
  await ip(
    ...['link', 'add', LINK, 'netns', namespaceOf('source'), 'type', 'veth'],
    ...['peer', 'name', LINK, 'netns', namespaceOf('standby')],
  )
  for (const host of HOSTS) {
    await ip('-n', namespaceOf(host), 'address', 'add', `${ADDRESS[host]}/24`, 'dev', LINK)
    await ip('-n', namespaceOf(host), 'link', 'set', LINK, 'up')
  }
}

/** Pulls the plug on the source's side: the standby gets no answers any more, and no refusals either. */
export async function cutNetwork(): Promise<void> {
  await ip('-n', namespaceOf('source'), 'link', 'set', LINK, 'down')
}

/** Puts it back; the hosts reach each other when this returns. */
export async function healNetwork(): Promise<void> {
  await ip('-n', namespaceOf('source'), 'link', 'set', LINK, 'up')
  // The kernel tells of the carrier later, and remembers for seconds that nobody answered.
  for (const host of HOSTS)
    await waitFor(`the network of ${host}`, 10, async () => {
      const { stdout } = await execa('ip', ['-n', namespaceOf(host), 'link', 'show', 'dev', LINK])
      return stdout.includes('state UP')
    })
  for (const host of HOSTS)
    await ip('-n', namespaceOf(host), 'neighbour', 'flush', 'dev', LINK, 'nud', 'all')
}

/** `/etc/hosts` of a host. */
export function hostsFile(host: HostName): string {
  const others = HOSTS.map(name => `${ADDRESS[name]} ${name}`)
  return ['127.0.0.1 localhost', ...others, `::1 localhost ${host}`, ''].join('\n')
}
