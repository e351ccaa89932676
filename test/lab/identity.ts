// Who a host is: names, keys, and the configuration of its services. Written once, it survives power cuts.

import { randomUUID } from 'node:crypto'
import { inHost } from './enter.ts'
import { HOSTS, type HostName } from './names.ts'
import { hostsFile } from './network.ts'

const SSHD_CONFIG = `Port 22
HostKey /etc/ssh/ssh_host_ed25519_key
PidFile /run/sshd.pid
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
MaxStartups 100
MaxSessions 100
Subsystem sftp internal-sftp
`

/** Writes a file in a host, durably, with its directories. */
export async function writeInHost(host: HostName, path: string, text: string): Promise<void> {
  const write = 'mkdir -p "$(dirname "$1")" && cat >"$1" && sync "$1"'
  await inHost(host, ['sh', '-c', write, 'sh', path], { input: text })
}

/** Gives every host its name, its keys and its configuration, and lets root of each log in to the other. */
export async function introduceHosts(): Promise<void> {
  await Promise.all(HOSTS.map(configure))
  const keys = await Promise.all(HOSTS.map(publicKeys))
  const known = keys.map(({ host, hostKey }) => `${host} ${hostKey}\n`).join('')
  const authorized = keys.map(({ rootKey }) => `${rootKey}\n`).join('')
  for (const host of HOSTS) {
    await writeInHost(host, '/root/.ssh/known_hosts', known)
    await writeInHost(host, '/root/.ssh/authorized_keys', authorized)
  }
}

async function configure(host: HostName): Promise<void> {
  const path = (await inHost(host, ['printenv', 'PATH'])).stdout
  await writeInHost(host, '/etc/hosts', hostsFile(host))
  await writeInHost(host, '/etc/hostname', `${host}\n`)
  await writeInHost(host, '/etc/machine-id', `${randomUUID().replaceAll('-', '')}\n`)
  await writeInHost(host, '/etc/libvirt/libvirtd.conf', `host_uuid = "${randomUUID()}"\n`)
  await writeInHost(host, '/etc/ssh/sshd_config', `${SSHD_CONFIG}SetEnv PATH=${path}\n`)
  // A locked account may not log in without PAM, so root gets an impossible password instead.
  await inHost(host, ['sed', '-i', 's/^root:![^:]*:/root:*:/', '/etc/shadow'])
  for (const file of ['/etc/ssh/ssh_host_ed25519_key', '/root/.ssh/id_ed25519'])
    await inHost(host, ['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-C', host, '-f', file])
}

interface PublicKeys {
  readonly host: HostName
  readonly hostKey: string
  readonly rootKey: string
}

async function publicKeys(host: HostName): Promise<PublicKeys> {
  const hostKey = await inHost(host, ['cat', '/etc/ssh/ssh_host_ed25519_key.pub'])
  const rootKey = await inHost(host, ['cat', '/root/.ssh/id_ed25519.pub'])
  return { host, hostKey: hostKey.stdout, rootKey: rootKey.stdout }
}
